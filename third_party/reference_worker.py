"""Runs llama.cpp's own converter on many folders in one process; started by reference_converter.py, not by hand.

Reads one JSON object per line from stdin: {"folder", "target", "type", "pre"}, answers each with one line
{"error": null or text} on stdout. argv: the folder of llama.cpp's source.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the converter prints goes to stderr
    sys.path.insert(0, sys.argv[1])
    import conversion
    import torch
    from conversion.base import ModelBase, ModelType, TextModel, gguf
    from transformers import PreTrainedConfig

    # Opening the tokenizer of a model that it does not know, the library wants this for scaled rotary embeddings.
    PreTrainedConfig.max_position_embeddings = 0

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kinds = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    detect = TextModel.get_vocab_base_pre

    def convert(job: dict[str, Any]) -> None:
        folder = Path(job["folder"])
        # Made-up tokenizers have no fingerprint in the converter's table.
        pre = job.get("pre")
        TextModel.get_vocab_base_pre = (lambda self, tokenizer: pre) if pre else detect
        hparams = ModelBase.load_hparams(folder, False)
        name = conversion.get_model_architecture(hparams, ModelType.TEXT)
        family = conversion.get_model_class(name)
        with torch.inference_mode():
            family(folder, kinds[job["type"]], Path(job["target"])).write()

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            convert(json.loads(line))
            error = None
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
