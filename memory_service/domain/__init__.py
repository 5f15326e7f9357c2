"""Plain Python: what a turn, a chunk and a memory are. No tensors, no SQL."""
