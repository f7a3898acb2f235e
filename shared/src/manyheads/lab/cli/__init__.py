"""The command line: how a function becomes a command, and the commands of every domain."""
