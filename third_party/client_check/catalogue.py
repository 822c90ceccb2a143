"""The programs that are tried: where they come from, what they are made of, how one is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WORKERS = Path(__file__).with_name("workers")
Kind = Literal["self", "pypi", "npm", "reference"]
Duty = Literal["text", "values", "header"]


@dataclass(frozen=True)
class Client:
    """One program.

    Attributes:
        name: as its registry calls it.
        kind: "pypi" and "npm" get an environment of their own; "self" runs in our own, "reference" in the one
            with torch.
        packages: requirements for the registry's client; the first one's version is recorded.
        worker: file in workers/.
        llama_cpp: whether it is a build of llama.cpp, so that greedy text must be equal.
        duty: what it is asked: to generate "text", to read the weights' "values", or only the "header".
        about: one line for the page.
        needs: programs of the system that it uses.
    """

    name: str
    kind: Kind
    packages: tuple[str, ...]
    worker: str
    llama_cpp: bool
    duty: Duty
    about: str
    needs: tuple[str, ...] = ()


REFERENCE = Client(
    "llama-cpp-python", "self", ("llama-cpp-python",), "llama_cpp_python.py", True, "text",
    "llama.cpp, the build that ewq-gguf itself uses; the others' text is compared with its",
)  # fmt: skip

CLIENTS: tuple[Client, ...] = (
    REFERENCE,
    Client("xllamacpp", "pypi", ("xllamacpp",), "xllamacpp.py", True, "text", "llama.cpp's server in Python"),
    Client("node-llama-cpp", "npm", ("node-llama-cpp",), "node_llama_cpp.mjs", True, "text",
           "llama.cpp for Node.js"),
    Client("@wllama/wllama", "npm", ("@wllama/wllama",), "wllama.mjs", True, "text",
           "llama.cpp as WebAssembly, in headless Chromium", ("chromium",)),
    Client("mistralrs", "pypi", ("mistralrs",), "mistralrs.py", False, "text",
           "mistral.rs: candle, its own kernels and GGUF reader"),
    Client("openvino-genai", "pypi", ("openvino-genai",), "openvino_genai.py", False, "text",
           "OpenVINO: its own GGUF reader, which computes with codes of its own"),
    Client("transformers", "reference", ("transformers", "accelerate", "psutil"), "transformers.py", False, "text",
           "PyTorch; the weights are dequantized by the gguf package"),
    # The wheel of 0.14.0 lacks a module that its own language models import.
    Client("tinygrad", "pypi", ("tinygrad==0.13.0", "numpy"), "tinygrad.py", False, "text",
           "tinygrad's own GGUF reader and Llama", ("clang",)),
    Client("mlx", "pypi", ("mlx[cpu]", "numpy"), "mlx.py", False, "values",
           "MLX on the CPU: mx.load of GGUF files"),
    Client("libgguf", "pypi", ("libgguf", "numpy"), "libgguf.py", False, "values",
           "a stand-alone implementation of the quantization formats"),
    Client("@huggingface/gguf", "npm", ("@huggingface/gguf",), "huggingface_gguf.mjs", False, "header",
           "the Hub's own parser: metadata and tensor list"),
)  # fmt: skip
