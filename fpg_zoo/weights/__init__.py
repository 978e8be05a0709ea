"""Weights as data: what was published, where it is kept, how it is checked and renamed. Knows nothing of modules."""
