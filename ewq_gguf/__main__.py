"""`python -m ewq_gguf` is `ewq-gguf`."""

from ewq_gguf.cli import main

if __name__ == "__main__":
    main()
