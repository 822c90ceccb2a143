"""What people call a chat format, told by the words around a user's turn."""

from __future__ import annotations

from ewq_gguf.export.chat_observe import Pieces

# (name, what opens a user's turn, what must stand somewhere else in the format); the first that fits.
_FORMATS = (
    ("ChatML", "<|im_start|>user\n", ""),
    ("Phi-4", "<|im_start|>user<|im_sep|>", ""),
    ("Llama 3", "<|start_header_id|>user<|end_header_id|>", ""),
    ("Llama 2", "[INST]", "<<SYS>>"),
    ("Mistral", "[INST]", ""),
    ("Gemma", "<start_of_turn>user\n", ""),
    ("Gemma 4", "<|turn>user\n", ""),
    ("Zephyr", "<|user|>\n", "</s>"),
    ("Phi-3", "<|user|>\n", "<|end|>"),
    ("GLM", "<|user|>\n", "[gMASK]"),
    ("DeepSeek", "<｜User｜>", ""),
    ("DeepSeek 2", "User: ", "Assistant:"),
    ("Harmony", "<|start|>user<|message|>", ""),
    ("Granite", "<|start_of_role|>user<|end_of_role|>", ""),
    ("Command R", "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", ""),
)


def format_name(pieces: Pieces) -> str | None:
    """The name of a known format, or None."""
    asking = pieces.head + pieces.user_prefix
    everything = "".join(
        (*(pieces.system or ()), asking, pieces.user_suffix, pieces.answer_suffix, pieces.generation)
    )
    found = (name for name, user, other in _FORMATS if user in asking and other in everything)
    return next(found, None)
