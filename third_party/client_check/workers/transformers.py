"""transformers: the GGUF file is dequantized and run by PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from answer import request, serve

wish = request()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(1)


def read(item: dict[str, Any]) -> dict[str, Any]:
    path = Path(item["file"])
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    prompt = tokenizer(item["prompt"], return_tensors="pt")
    with torch.no_grad():
        made = model.generate(
            input_ids=prompt["input_ids"], max_new_tokens=item["tokens"], do_sample=False, pad_token_id=0
        )
    whole = tokenizer.decode(made[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    start = tokenizer.decode(
        prompt["input_ids"][0], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    note = "" if start.strip() == item["prompt"].strip() else f"the prompt reads {start!r}"
    return {"text": whole.removeprefix(start), "note": note}


serve(wish, read)
