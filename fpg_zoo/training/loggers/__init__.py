"""Where a run's metrics, pictures and curves go besides its own `log.jsonl`; chosen by name."""
