"""Other programs that read GGUF, tried on files that ewq-gguf wrote."""
