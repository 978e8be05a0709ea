"""The networks: backbone, necks, heads, and the detectors composed of them. Nothing here knows of weights or data."""
