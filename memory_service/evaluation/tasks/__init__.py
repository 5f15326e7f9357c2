"""One file per task: where its samples come from."""
