"""Inference forms of the detectors: what they compute, reckoned in fewer and larger steps."""

from fpg_zoo.optimized.detectors import optimize

__all__ = ["optimize"]
