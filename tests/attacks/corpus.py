"""All attacks."""

from __future__ import annotations

from tests.attacks import configs, documents, ggufs, headers, places, tokenizers_binary, tokenizers_json
from tests.attacks.attack import Attack, joined

ATTACKS: tuple[Attack, ...] = joined(
    headers.ATTACKS,
    configs.ATTACKS,
    tokenizers_json.ATTACKS,
    tokenizers_binary.ATTACKS,
    ggufs.ATTACKS,
    documents.ATTACKS,
    places.ATTACKS,
)
