"""xllamacpp: llama.cpp's server, called in-process."""

from __future__ import annotations

from typing import Any

from answer import request, serve

wish = request()

import xllamacpp  # noqa: E402


def read(item: dict[str, Any]) -> dict[str, Any]:
    settings = xllamacpp.CommonParams()
    settings.model.path = item["file"]
    settings.n_ctx = 256
    settings.n_parallel = 1
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    settings.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(settings)
    found = server.handle_completions(
        {"prompt": item["prompt"], "max_tokens": item["tokens"], "temperature": 0, "top_k": 1, "seed": 1}
    )
    return {"text": found["choices"][0]["text"]}


serve(wish, read)
