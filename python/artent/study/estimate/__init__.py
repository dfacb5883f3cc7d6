"""What a study would take before it starts: memory, disk and time, without gradients and without reading weights."""
