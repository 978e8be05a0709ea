"""Heads: a pyramid to proposals, boxes and masks."""
