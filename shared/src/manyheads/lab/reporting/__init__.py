"""Reports: tables at a terminal, HTML pages, the leaderboard, pictures and costs of the layers."""
