"""Whole detectors as graphs of fixed sizes, for runtimes other than this package."""
