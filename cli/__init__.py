"""The command line: commands parse, call one service, render."""
