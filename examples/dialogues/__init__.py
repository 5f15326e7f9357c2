"""Data that `memory demo` reads when it is not given any; installed as `memory_cli.dialogues`."""
