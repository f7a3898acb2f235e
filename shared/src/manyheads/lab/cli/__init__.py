"""The command line: functions as commands, and the commands of every domain."""
