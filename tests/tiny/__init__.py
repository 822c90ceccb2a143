"""Tiny checkpoints with made-up weights, one for every model family and config variant; numpy only."""
