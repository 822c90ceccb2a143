"""Hostile config.json of several families, and generation_config.json."""

from __future__ import annotations

import json

from tests.attacks.attack import Attack, Change, changed, literal, placed, raw, without

FILE, GENERATION = "config.json", "generation_config.json"


def _config(name: str, change: Change, *says: str, base: str = "llama") -> Attack:
    return changed(
        "config.json", name if base == "llama" else f"{base}: {name}", FILE, change, *says, base=base
    )


def _bytes(name: str, content: bytes, *says: str) -> Attack:
    return raw("config.json", name, FILE, content, *says)


def _values(key: str, *spelled: str, base: str = "llama") -> tuple[Attack, ...]:
    """The key with values that are none for it, each spelled as JSON or what passes for it."""
    return tuple(_config(f"{key} = {text:.20}", literal(key, text), key, base=base) for text in spelled)


def _deep(depth: int) -> Change:
    return lambda document: json.dumps(document)[:-1] + ', "x": ' + '{"x":' * depth + "1" + "}" * depth + "}"


def _rope(**values: object) -> Change:
    return placed("rope_scaling", value={"rope_type": "llama3", "factor": 8.0, **values})


def _quantized(**values: object) -> Change:
    return placed("quantization_config", value=values)


# Below zero, beyond every integer, no number at all.
_NO_COUNT = ("-1", "0.5", "1e400", "NaN", '"64"', "[64]", "{}", "true", "9" * 40)
_NO_NUMBER = ("1e400", "NaN", "-Infinity", '"x"', "[1]", "{}", "true", "9" * 40)

_GENERAL: tuple[Attack, ...] = (
    _bytes("empty file", b"", "not valid JSON"),
    _bytes("cut off", b'{"architectures": ["Llama', "not valid JSON"),
    _bytes("a list", b"[]", "object"),
    _bytes("a string", b'"LlamaForCausalLM"', "object"),
    _bytes("no UTF-8", b'{"a": "\xff"}', "UTF-8"),
    _bytes("UTF-16", '{"a": 1}'.encode("utf-16"), "UTF-8"),
    _bytes("zeros", bytes(1024), "not valid JSON"),
    _bytes("lists nested deeply", b"[" * 200_000, "nested too deeply"),
    _bytes("objects nested deeply", b'{"a":' * 200_000, "nested too deeply"),
    _bytes("a number of 10,000 digits", b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    _bytes("millions of items", b'{"a":[' + b"1," * 6_000_000 + b"1]}", "items"),
    _bytes("a key twice", b'{"architectures": ["LlamaForCausalLM"], "architectures": ["Qwen2ForCausalLM"]}', "twice"),
    _bytes("a key twice, far inside", b'{"a": [{"b": {"c": 1, "c": 2}}]}', "twice"),
    _config("nested a hundred times", _deep(100), "nested too deeply"),
    _config("nested as deeply as can be parsed", _deep(900), "nested too deeply"),
    _config("no architecture", without("architectures"), "architectures"),
    _config("an architecture of a string", placed("architectures", value="LlamaForCausalLM"), "architectures"),
    _config("an architecture of a number", placed("architectures", value=[1]), "architectures"),
    _config("no architectures in the list", placed("architectures", value=[]), "architectures"),
    _config("an unknown architecture", placed("architectures", value=["NoSuchForCausalLM"]), "NoSuchForCausalLM"),
    _config("an architecture of ten megabytes", placed("architectures", value=["A" * 10_000_000]), "AAA"),
    _config("an architecture of half a surrogate pair", placed("architectures", value=["\ud800"]), "ud800"),
    _config("an architecture of control characters", placed("architectures", value=["\x1b[2J\n"]), "x1b"),
    _config("the name of a Python module", placed("architectures", value=["os.system"]), "os.system"),
    _config("another family's", placed("architectures", value=["MambaForCausalLM"]), "mamba"),
)  # fmt: skip

_LLAMA: tuple[Attack, ...] = (
    *_values("num_hidden_layers", *_NO_COUNT, "0", "2147483647", "2000000", "[[]]"),
    *_values("hidden_size", *_NO_COUNT),
    *_values("num_attention_heads", *_NO_COUNT, "0"),
    *_values("num_key_value_heads", *_NO_COUNT),
    *_values("vocab_size", "-1", "0", "1e400", "NaN", '"320"', "10000000", "2147483647", "9" * 40),
    *_values("intermediate_size", *_NO_COUNT),
    *_values("max_position_embeddings", *_NO_COUNT),
    *_values("rms_norm_eps", *_NO_NUMBER),
    *_values("rope_theta", *_NO_NUMBER),
    *_values("head_dim", "-1", "0", "1e400", "NaN", '"16"'),
    _config("heads that do not divide a matrix", placed("num_attention_heads", value=7), "7 attention heads"),
    _config("no number of layers", without("num_hidden_layers"), "num_hidden_layers"),
    _config("no number of heads", without("num_attention_heads"), "num_attention_heads"),
    _config("no size of the vocabulary", without("vocab_size"), "vocab_size"),
    _config("rope of a string", placed("rope_scaling", value="x"), "rope"),
    _config("rope of an unknown kind of name", _rope(rope_type=5), "rope_type"),
    _config("rope of a factor of a string", _rope(factor="8"), "rope factor"),
    _config("rope of a factor of zero", _rope(factor=0), "rope factors"),
    _config("rope of a factor below zero", _rope(factor=-8.0), "rope factors"),
    _config("rope of a low factor of zero", _rope(low_freq_factor=0), "rope factors"),
    _config("rope of an infinite context", literal("rope_scaling", '{"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 1e400}'), "original_max_position_embeddings"),
    _config("heads two thousand million wide", lambda d: {**_rope()(d), "head_dim": 2**31 - 1}, "head_dim"),
    _config("yarn without a context", lambda d: {**without("max_position_embeddings")(d), "rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "rope factor"),
    _config("already quantized by bitsandbytes", _quantized(quant_method="bitsandbytes"), "bitsandbytes"),
    _config("already quantized by GPTQ", _quantized(quant_method="gptq", bits=4), "GPTQ"),
    _config("quantized in no known way", _quantized(quant_method="no-such"), "no-such"),
    _config("quantized in a way of a list", _quantized(quant_method=["fp8"]), "quantized"),
    _config("FP8 blocks of zero", _quantized(quant_method="fp8", weight_block_size=[0, 0]), "blocks"),
    _config("FP8 blocks of strings", _quantized(quant_method="fp8", weight_block_size=["a"]), "blocks"),
    _config("FP8 blocks of a number", _quantized(quant_method="fp8", weight_block_size=128), "blocks"),
    _config("compressed in groups of a list", _quantized(quant_method="compressed-tensors", config_groups=[]), "compressed-tensors"),
)  # fmt: skip

_FAMILIES: tuple[Attack, ...] = (
    *_values("num_local_experts", "-1", "1e400", '"4"', "{}", base="mixtral"),
    *_values("num_experts_per_tok", "-1", "NaN", '"2"', base="mixtral"),
    *_values("num_hidden_layers", "2147483647", "-1", base="mixtral"),
    *_values("sliding_window", "-1", '"x"', base="gemma3"),
    *_values("num_hidden_layers", "2147483647", "NaN", base="gemma3"),
    *_values("kv_lora_rank", "-1", '"x"', "1e400", base="deepseek2-lite"),
    *_values("q_lora_rank", '"x"', base="deepseek2-lite"),
    *_values("num_hidden_layers", "2147483647", '"x"', base="deepseek2-lite"),
    *_values("num_hidden_layers", "2147483647", base="lfm2"),
    *_values("num_experts", "-1", "1e400", base="qwen3moe"),
    *_values("layer_types", '"x"', "[1]", "{}", base="qwen3-next"),
    *_values("num_hidden_layers", "2147483647", base="qwen3-next"),
)  # fmt: skip


def _generation(key: str, *spelled: str) -> tuple[Attack, ...]:
    return tuple(
        changed("generation_config.json", f"{key} = {text:.20}", GENERATION, literal(key, text), key)
        for text in spelled
    )


_GENERATION: tuple[Attack, ...] = (
    *_generation("temperature", '"hot"', "NaN", "1e400", "-Infinity", "[1]", "{}", "true", "9" * 400),
    *_generation("top_k", '"x"', "1.5", "2147483648", "-2147483649", "[50]", "true", "9" * 40),
    *_generation("top_p", '"x"', "NaN", "{}"),
    *_generation("repetition_penalty", '"x"', "1e400", "[]", "true"),
    *_generation("sequence", "5", '"\\ud800"'),
    *_generation("mirostat", "NaN", '"2"'),
)

ATTACKS: tuple[Attack, ...] = (*_GENERAL, *_LLAMA, *_FAMILIES, *_GENERATION)
