"""What our conversion of a tiny checkpoint contains, as one number.

python -m tests.tiny.digests      write tests/arch/digests.json anew, after `make parity` agreed
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.convert import file_metadata
from ewq_gguf.pipeline.quantize import quantize_tensors
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.vocab import TokenizerMode
from tests.tiny.build import build
from tests.tiny.case import Case
from tests.tiny.cases import CASES

FILE = Path(__file__).parent.parent / "arch" / "digests.json"
# Names guessed from the folder, and who made the file, are no part of the model.
_LEFT_OUT = (
    "general.name",
    "general.basename",
    "general.size_label",
    "general.finetune",
    "general.version",
    "ewq.",
)


def digest(case: Case, folder: Path) -> str:
    """A sha256 of metadata, tensor table and tensor data, under the first of the case's types."""
    model = load_model(build(case, folder / case.name), tokenizer=TokenizerMode.CONVERTER)
    plan = uniform_plan(model, GGMLType[case.types[0].upper()])
    state = hashlib.sha256()
    for key, value in sorted(file_metadata(model, plan).items()):
        if not key.startswith(_LEFT_OUT):
            state.update(f"{key} {value.type} {value.sub_type} {value.value!r}\n".encode())
    types = plan.types()
    for tensor in model.tensors:
        state.update(f"{tensor.name} {types[tensor.name].name} {tensor.shape}\n".encode())
    for chunk in quantize_tensors(model.tensors, types, threads=1):
        state.update(chunk.data.tobytes())
    return state.hexdigest()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {case.name: digest(case, Path(folder)) for case in CASES}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
