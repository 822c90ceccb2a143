"""Measuring GGUF files with llama.cpp: perplexity, divergence, choices, speed."""
