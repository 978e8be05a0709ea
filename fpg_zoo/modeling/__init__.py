"""The networks: a backbone, a neck, heads, and the detectors composed of them. Nothing here knows of weights or data."""
