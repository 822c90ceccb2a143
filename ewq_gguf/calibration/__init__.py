"""What running the model tells: importance matrix and per-tensor probes."""
