"""Necks: the backbone's feature maps to a pyramid."""
