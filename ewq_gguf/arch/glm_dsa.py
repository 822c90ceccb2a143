"""GLM-5: DeepSeek's layout, with an indexer that chooses what each token attends to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import finite
from ewq_gguf.arch.deepseek2 import Glm4MoeLite
from ewq_gguf.errors import UnsupportedModelError

_KINDS = {"F": "full", "S": "shared"}


class GlmMoeDsa(Glm4MoeLite):
    """GlmMoeDsaForCausalLM (conversion/glm.py); layers that look ahead stay behind the others."""

    architectures: ClassVar[tuple[str, ...]] = ("GlmMoeDsaForCausalLM",)
    arch: ClassVar[str] = "glm-dsa"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Glm4MoeLite.defaults,
        "first_k_dense_replace": 3,
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 64,
        "q_lora_rank": 2048,
        "routed_scaling_factor": 2.5,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        share = finite(self.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor")
        writer.add_rope_dimension_count(int(config.required("qk_rope_head_dim") * share))
        writer.add_indexer_head_count(config.required("index_n_heads"))
        writer.add_indexer_key_length(config.required("index_head_dim"))
        writer.add_indexer_top_k(config.required("index_topk"))
        writer.add_array(f"{self.arch}.attention.indexer.types", [kind == "full" for kind in self.indexers()])

    def indexers(self) -> list[str]:
        """For each block, "full" where it has an indexer and "shared" where it uses the one before.

        Raises:
            UnsupportedModelError: config.json lists other kinds, or not one for each block.
        """
        n, config = self.n_blocks - self.n_ahead, self.config
        listed = config.find("indexer_types", "index_topk_pattern")
        if listed is None:
            period = config.integer("index_topk_freq") or 1
            offset = config.integer("index_skip_topk_offset")
            first = 2 if offset is None else offset
            return ["full" if max(i - first + 1, 0) % period == 0 else "shared" for i in range(n)]
        kinds = [_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in listed]
        if len(kinds) != n or any(kind not in _KINDS.values() for kind in kinds):
            raise UnsupportedModelError(
                f"config.json gives indexer_types without full or shared for each of {n} blocks"
            )
        return kinds
