"""mistral.rs: candle's tensors, its own quantized kernels and GGUF tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answer import request, serve

wish = request()

from mistralrs import CompletionRequest, Runner, Which  # noqa: E402


def read(item: dict[str, Any]) -> dict[str, Any]:
    path = Path(item["file"])
    which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
    runner = Runner(which=which, max_seqs=1, token_source="none")
    found = runner.send_completion_request(
        CompletionRequest(model="default", prompt=item["prompt"], max_tokens=item["tokens"], temperature=0.0)
    )
    return {"text": found.choices[0].text}


serve(wish, read)
