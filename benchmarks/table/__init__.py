"""The table of published and measured metrics: its cells, its text, and the README's part of it."""
