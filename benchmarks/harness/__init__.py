"""What benchmarks share: timing and records, options, models, the stages of a detector, memory of tensors."""
