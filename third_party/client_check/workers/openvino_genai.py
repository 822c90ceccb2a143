"""openvino-genai: its own GGUF reader builds an OpenVINO graph and an OpenVINO tokenizer."""

from __future__ import annotations

from typing import Any

from answer import request, serve

wish = request()

import openvino_genai  # noqa: E402

# Activations and KV cache as they are: rounding them is no matter of the file.
EXACT = {
    "INFERENCE_NUM_THREADS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f16",
}


def read(item: dict[str, Any]) -> dict[str, Any]:
    pipeline = openvino_genai.LLMPipeline(item["file"], "CPU", **EXACT)
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens = item["tokens"]
    settings.do_sample = False
    settings.apply_chat_template = False
    return {"text": str(pipeline.generate(item["prompt"], settings))}


serve(wish, read)
