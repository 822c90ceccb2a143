"""Names of the parts that a layer for predicting several tokens ahead has beside an ordinary one."""

from __future__ import annotations

from collections.abc import Mapping

LOOKAHEAD_NAMES: Mapping[str, str] = {
    "model.layers.{bid}.eh_proj": "blk.{bid}.nextn.eh_proj",
    "model.layers.{bid}.embed_tokens": "blk.{bid}.nextn.embed_tokens",
    "model.layers.{bid}.enorm": "blk.{bid}.nextn.enorm",
    "model.layers.{bid}.hnorm": "blk.{bid}.nextn.hnorm",
    "model.layers.{bid}.shared_head.head": "blk.{bid}.nextn.shared_head_head",
    "model.layers.{bid}.shared_head.norm": "blk.{bid}.nextn.shared_head_norm",
}
"""Hugging Face name -> GGUF name where gguf's table for a family lacks them (`Family.more_names`)."""
