"""Hidden states -> update -> state -> adapter. Tensors only, no I/O but checkpoints."""
