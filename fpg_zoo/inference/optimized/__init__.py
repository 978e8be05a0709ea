"""Inference forms of the detectors: what they compute, in fewer and larger steps."""

from fpg_zoo.inference.optimized.detectors import optimize

__all__ = ["optimize"]
