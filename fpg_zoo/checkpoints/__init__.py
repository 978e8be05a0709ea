"""Checkpoint files and the names of the tensors in them; no modules."""
