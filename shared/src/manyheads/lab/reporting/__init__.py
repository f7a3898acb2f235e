"""Reports: terminal tables, HTML pages, the leaderboard, pictures of layers and their cost."""
