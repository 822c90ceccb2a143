"""Encoders that make vectors of texts: BERT, XLM-RoBERTa, and Nomic's BERT with rotary embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.pooling import pooling_type
from ewq_gguf.arch.views import SliceRows
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_wordpiece, load_xlm_roberta

_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
# Heads for guessing hidden words and the order of sentences.
_HEADS = ("cls.predictions", "cls.seq_relationship")


class Bert(Family):
    """BertModel and BertForMaskedLM (conversion/bert.py) with WordPiece; the pooler and the heads are left out."""

    architectures: ClassVar[tuple[str, ...]] = ("BertModel", "BertForMaskedLM")
    arch: ClassVar[str] = "bert"
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "type_vocab_size": 2,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_wordpiece)

    def rename(self, name: str) -> str | None:
        name = name.removeprefix("bert.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return None if name in _UNUSED or name.startswith(_HEADS) else super().rename(name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.config.find("is_causal") is not False:
            writer.add_causal_attention(False)

    def add_folder_metadata(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        if (pooling := pooling_type(folder)) is not None:
            writer.add_pooling_type(pooling)


class XlmRoberta(Bert):
    """XLMRobertaModel (bge-m3, multilingual E5): positions are counted from behind the padding's."""

    architectures: ClassVar[tuple[str, ...]] = ("XLMRobertaModel",)
    defaults: ClassVar[Mapping[str, Any]] = {**Bert.defaults, "pad_token_id": 1}
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_xlm_roberta
    )

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        if config.find("lora_adaptations"):
            raise UnsupportedModelError(
                "config.json names lora_adaptations, of which llama.cpp wants files of their own"
            )
        self._offset = config.required("pad_token_id", minimum=0) + 1
        positions = config.required("max_position_embeddings", minimum=self._offset + 1)
        return config.updated(max_position_embeddings=positions - self._offset)

    def rename(self, name: str) -> str | None:
        return super().rename(name.removeprefix("roberta."))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name == "embeddings.position_embeddings.weight":
            return [(name, SliceRows(tensor, min(self._offset, tensor.shape[0]), tensor.shape[0]))]
        return [(name, tensor)]


class NomicBert(Bert):
    """NomicBertModel: nomic-embed-text 1 and 1.5."""

    architectures: ClassVar[tuple[str, ...]] = ("NomicBertModel",)
    arch: ClassVar[str] = "nomic-bert"
    defaults: ClassVar[Mapping[str, Any]] = {"max_trained_positions": 2048, "type_vocab_size": 2}
    # What llama.cpp's graph takes for granted.
    _EXPECTED: ClassVar[Mapping[str, Any]] = {
        "activation_function": "swiglu",
        "causal": False,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_positions": 8192,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
    }

    def prepare_config(self, config: Config) -> Config:
        if config.find("moe_every_n_layers"):
            raise UnsupportedModelError("config.json describes Nomic's mixture of experts, which is not read")
        for key, value in self._EXPECTED.items():
            if config.get(key) != value:
                raise UnsupportedModelError(
                    f"config.json gives {key} = {config.get(key)!r:.60}; llama.cpp knows {value!r} only"
                )
        # The model was trained on shorter texts than its position count says.
        return super().prepare_config(config).updated(n_positions=config.required("max_trained_positions"))
