"""Every preset against llama_model_quantize itself: files that it writes, and its dry run for all else.

The dry run decides types exactly as a real run does and prints them, so it needs no weights: thousands of
combinations of family, shapes, preset and options are compared in seconds.
"""

from __future__ import annotations

import re
import runpy
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from ewq_gguf.allocation.pins import exact_pin, parse_pin, read_pins
from ewq_gguf.allocation.presets import (
    ALIASES,
    PRESETS,
    TensorFacts,
    fallback_type,
    find_preset,
    model_facts,
    preset_types,
    quantizable,
    quantize_order,
)
from ewq_gguf.errors import CheckpointError, PlanError
from ewq_gguf.ggml.types import GGMLType
from tests.allocation.preset_models import (
    MODELS,
    Model,
    metadata,
    random_imatrix,
    random_model,
)
from tests.allocation.quantize_native import (
    dry_run,
    names,
    native,
    printed_types,
    stored_types,
)


def test_every_preset_of_llama_quantize_is_known() -> None:
    numbers = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_"): getattr(
            llama_cpp, name
        )
        for name in dir(llama_cpp)
        if name.startswith("LLAMA_FTYPE_") and name != "LLAMA_FTYPE_GUESSED"
    }
    del numbers["NVFP4"]  # llama-quantize offers it neither by name nor by number
    assert {name: preset.llama_ftype for name, preset in PRESETS.items()} == numbers
    assert all(preset.about and preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("has_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_of_the_dry_run(name: str, has_imatrix: bool, tmp_path: Path) -> None:
    model = MODELS[name]
    source = model.write(tmp_path / "model.gguf")
    facts = model_facts(model.metadata)
    some = {"no.such.tensor": np.ones(1, np.float32)} if has_imatrix else None
    compared = 0
    for preset, known in PRESETS.items():
        if facts.arch == "clip" and any(rule.gqa_from for rule in known.rules.get("attn_v", ())):
            continue  # llama.cpp aborts: a projector has no first block whose heads it could count
        code, text = native(source, None, preset, imatrix=some)
        if code:
            assert "no tensor type fallback is defined" in text, text
            with pytest.raises(PlanError, match="choose a type with smaller blocks"):
                preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
            continue
        ours = preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
        assert names(ours) == printed_types(text), preset
        assert list(ours) == list(printed_types(text)), preset
        if not has_imatrix:
            wants_one = "will require an imatrix" in text
            assert any(a.requires_imatrix for a in ours.values()) == wants_one, preset
        compared += 1
    assert compared >= (len(PRESETS) - 1 if facts.n_layer else 20)


WRITTEN = ("llama", "llama, rows of 96, 160 and 288", "mixtral", "llama, tied", "falcon")


def made_of_codebooks(preset: str) -> bool:
    """IQ1 to IQ3: ggml builds their tables on first use, which takes seconds each."""
    return preset.startswith(("IQ1", "IQ2", "IQ3"))


def differs_from_written_file(name: str, preset: str, folder: Path) -> bool:
    """Whether our types are others than those that llama-quantize writes; presets that it refuses do not differ."""
    model = MODELS[name]
    source = folder / "model.gguf"
    if not source.exists():
        model.write(source, data=True)
    target = folder / "out.gguf"
    imatrix = random_imatrix(model) if PRESETS[preset].needs_imatrix else None
    code, text = native(source, target, preset, imatrix=imatrix)
    if code:
        assert preset == "Q1_0", text
        assert "no tensor type fallback is defined" in text
        return False
    ours = preset_types(preset, model.tensors, model_facts(model.metadata), has_imatrix=imatrix is not None)
    return names(ours) != stored_types(target)


@pytest.mark.parametrize("name", WRITTEN)
def test_types_are_those_of_written_files(name: str, tmp_path: Path) -> None:
    # The installed gguf cannot name Q2_0; the dry run covers it.
    presets = [p for p in PRESETS if p != "Q2_0" and not made_of_codebooks(p)]
    assert [p for p in presets if differs_from_written_file(name, p, tmp_path)] == []


@pytest.mark.parity
@pytest.mark.parametrize("name", WRITTEN)
def test_types_are_those_of_written_files_of_codebook_presets(name: str, tmp_path: Path) -> None:
    presets = filter(made_of_codebooks, PRESETS)
    assert [p for p in presets if differs_from_written_file(name, p, tmp_path)] == []


def test_presets_that_need_an_importance_matrix_are_refused_without(tmp_path: Path) -> None:
    source = MODELS["llama"].write(tmp_path / "model.gguf", data=True)
    for preset, known in PRESETS.items():
        if known.needs_imatrix:
            code, text = native(source, tmp_path / "out.gguf", preset)
            assert code != 0, preset
            assert "requires an imatrix" in text, preset
        else:
            _, text = native(source, None, preset)
            assert "will require an imatrix" not in text, preset


OPTIONS: dict[str, dict[str, Any]] = {
    "pure": {"pure": True},
    "output": {"output_type": GGMLType.Q5_K},
    "embedding": {"embedding_type": GGMLType.Q3_K},
    "both": {"output_type": GGMLType.F16, "embedding_type": GGMLType.IQ4_NL},
    "leave output": {"quantize_output_tensor": False},
    "pinned values": {"pins": ["attn_v=q8_0"]},
    "some pinned": {"pins": [r"blk\.[0-2]\.(attn_v|ffn_down)=iq4_xs", "ffn_down=q3_k", "FFN_UP=BF16"]},
    "pinned ends": {"pins": ["^token_embd=q2_k", "^output.weight=q3_k"], "embedding_type": GGMLType.Q6_K},
    "pure and pinned": {"pure": True, "pins": ["attn_q.weight=q5_0", "attn=q5_1"]},
    "pinned table": {"pins": ["per_layer_token=q4_1"], "embedding_type": GGMLType.Q6_K},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_the_dry_run(options: dict[str, Any], tmp_path: Path) -> None:
    options = {**options, "pins": [parse_pin(pin) for pin in options.get("pins", ())]}
    ours = {key: value for key, value in options.items() if key != "quantize_output_tensor"}
    ours["keep_output"] = not options.get("quantize_output_tensor", True)
    compared = 0
    for name in ("llama", "llama, tied", "mixtral", "falcon", "thin and flat"):
        model = MODELS[name]
        source = model.write(tmp_path / "model.gguf")
        present = [pin for pin in options["pins"] if any(pin.matches(tensor) for tensor in model.shapes)]
        for preset, known in PRESETS.items():
            if present and not known.base.is_quantized:
                continue  # llama-quantize drops pins silently here
            if preset == "Q1_0" and name == "thin and flat":
                continue  # it has no stand-in for rows of one weight
            theirs = dry_run(source, preset, **{**options, "pins": present})
            mine = preset_types(
                preset, model.tensors, model_facts(model.metadata), **{**ours, "pins": present}
            )
            assert names(mine) == theirs, (name, preset)
            compared += 1
    assert compared > 100


def write_imatrix(model: Model, path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in random_imatrix(model).items():
        stacks = model.shapes[name][0] if len(model.shapes[name]) > 2 else 1
        writer.add_tensor(f"{name}.in_sum2", values.reshape(stacks, -1))
        writer.add_tensor(f"{name}.counts", np.full((stacks, 1), 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama", "mixtral, odd rows"])
@pytest.mark.parametrize("preset", ["Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K_S", "Q3_K_L", "MXFP4_MOE"])
def test_types_are_those_of_the_program(name: str, preset: str, tmp_path: Path) -> None:
    pinned = runpy.run_path(str(Path(__file__).parents[2] / "third_party" / "pins.py"))
    program = pinned["cache_folder"]() / f"llama.cpp-{pinned['pinned_version']()}" / "bin" / "llama-quantize"
    if not program.exists():
        pytest.skip("llama-quantize has not been built")
    model = MODELS[name]
    source = model.write(tmp_path / "model.gguf", data=True)
    imatrix = write_imatrix(model, tmp_path / "imatrix.gguf")
    entries = tmp_path / "types.txt"
    entries.write_text("blk.3.*attn_v=Q6_K\nFFN_(up|gate)=q5_k\n", encoding="utf-8")
    pins = [parse_pin("attn_q=iq4_nl"), *read_pins(entries)]
    command = [program, "--imatrix", imatrix, "--tensor-type", "attn_q=IQ4_NL", "--tensor-type-file", entries]
    command += ["--token-embedding-type", "q5_1", source, tmp_path / "out.gguf", preset, "2"]
    subprocess.run(command, check=True, capture_output=True)
    ours = preset_types(
        preset,
        model.tensors,
        model_facts(model.metadata),
        has_imatrix=True,
        embedding_type=GGMLType.Q5_1,
        pins=pins,
    )
    assert names(ours) == stored_types(tmp_path / "out.gguf")


def test_pins_are_honoured_where_llama_quantize_drops_them(tmp_path: Path) -> None:
    model = MODELS["llama"]
    pins = [parse_pin("ffn_down=q8_0")]
    dropped = dry_run(model.write(tmp_path / "model.gguf"), "BF16", pins=pins)
    assert set(dropped.values()) == {"BF16", "F32"}
    ours = preset_types("BF16", model.tensors, model_facts(model.metadata), pins=pins)
    assert {n for n, a in ours.items() if a.type == GGMLType.Q8_0} == {n for n in ours if "ffn_down" in n}


PATTERNS = (
    *(
        "attn_v",
        r"blk\.[0-3]\.",
        "^token",
        "weight$",
        r"blk\.\d\.ffn_(up|down)",
        r"blk\.(1|2)\d?\.attn",
        "ATTN_K",
    ),
    *(
        r"\bffn_up\b",
        r"[[:digit:]]\.ffn_gate",
        "(?:attn|ffn)_q",
        "attn_(?!q)",
        "blk.*down",
        "ffn_[^dg]",
        "attn_q|_k",
    ),
    *(
        r"blk\.[^[:space:]5]\.attn_k",
        r"(t)\1n_v",
        r"\.\w{6}\.weight",
        r"blk\.(?=3)",
        "x?attn_q",
        r"\D\.attn_q",
    ),
    *(
        r"[\d]\.attn",
        "t{2}n_v",
        ".",
        "[[:alpha:]_]+_up",
        r"\s|attn_v",
        "[a-c]lk.7",
        "blk.[3-][.]",
        r"^blk\.1\.",
        "attn_[:kv:]",
        "ffn_[^[:alpha:]_d]|_q",
        r"[\]n]_k",
    ),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_found_where_llama_quantize_finds_them(pattern: str, tmp_path: Path) -> None:
    model = MODELS["llama, tied"]
    pin = parse_pin(f"{pattern}=q4_1")
    theirs = dry_run(model.write(tmp_path / "model.gguf"), "Q8_0", pins=[pin])
    facts = model_facts(model.metadata)
    assert names(preset_types("Q8_0", model.tensors, facts, pins=[pin])) == theirs
    pinned = {
        tensor.name for tensor in model.tensors if pin.matches(tensor.name) and quantizable(tensor, facts)
    }
    assert pinned == {name for name, kind in theirs.items() if kind == "Q4_1"}
    assert pinned


REFUSED = (
    "(",
    "attn_v)",
    "[z-a]",
    "[a",
    "(?i)attn",
    "(?<=a)ttn",
    "(?P<x>a)",
    "*a",
    "a{2,1}",
    "a\\",
)


@pytest.mark.parametrize("pattern", REFUSED)
def test_patterns_that_llama_quantize_refuses_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^pattern '"):
        parse_pin(f"{pattern}=q4_1")
    # The same text behind another pin's back: what llama.cpp says of it.
    source = MODELS["one layer"].write(tmp_path / "model.gguf")
    unchecked = replace(parse_pin("x=q4_1"), pattern=pattern.lower())
    code, text = native(source, None, "Q8_0", pins=[unchecked])
    assert code != 0, text


def test_an_exact_pin_matches_one_name_for_llama_quantize(tmp_path: Path) -> None:
    odd = [
        "a-b+c.weight",
        "a-b+cd.weight",
        "(v)[1]{2}|*?^$.weight",
        "v.Block.0/x weight",
        "blk.1.x.weight",
        "blk.11.x.weight",
    ]
    model = Model(metadata("llama", 12), dict.fromkeys(odd, (4, 256)))
    source = model.write(tmp_path / "model.gguf")
    for name in odd:
        pin = exact_pin(name, GGMLType.Q4_1)
        code, text = native(source, None, "Q8_0", pins=[pin])
        assert code == 0, text
        chosen = re.findall(
            r"^llama_tensor_get_type: (.*?) +- applying manual override: q8_0 -> q4_1$", text, re.M
        )
        assert chosen == [name]
        assert [n for n in odd if pin.matches(n)] == [name]


@pytest.mark.parametrize("seed", range(12))
def test_random_headers_get_the_types_of_the_dry_run(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    while True:
        model = random_model(rng)
        if model.shapes:
            break
    source = model.write(tmp_path / "model.gguf")
    facts = model_facts(model.metadata)
    for preset in PRESETS:
        has_imatrix = bool(rng.random() < 0.5)
        some = {"no.such.tensor": np.ones(1, np.float32)} if has_imatrix else None
        code, text = native(source, None, preset, imatrix=some)
        if code:
            assert "no tensor type fallback is defined" in text, text
            with pytest.raises(PlanError):
                preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
        else:
            ours = preset_types(preset, model.tensors, facts, has_imatrix=has_imatrix)
            assert names(ours) == printed_types(text), preset


def test_the_order_in_which_tensors_are_given_does_not_matter() -> None:
    model = MODELS["mixtral"]
    facts = model_facts(model.metadata)
    expected = preset_types("Q4_K_M", model.tensors, facts)
    shuffled = [model.tensors[i] for i in np.random.default_rng(1).permutation(len(model.tensors))]
    assert list(preset_types("Q4_K_M", shuffled, facts).items()) == list(expected.items())


def test_order_is_by_number_of_block_then_name() -> None:
    given = [
        "blk.10.b.weight",
        "blk.2.a.weight",
        "output.weight",
        "blk.2.B.weight",
        "blk.10.a.weight",
        "a.weight",
    ]
    ordered = quantize_order(TensorFacts(name, (4, 4), GGMLType.F16) for name in given)
    assert [t.name for t in ordered] == [
        *(
            "a.weight",
            "output.weight",
            "blk.2.B.weight",
            "blk.2.a.weight",
            "blk.10.a.weight",
            "blk.10.b.weight",
        )
    ]


def test_reasons_tell_rule_fallback_and_pin() -> None:
    model = MODELS["llama, rows of 96, 160 and 288"]
    ours = preset_types(
        "Q4_K_M", model.tensors, model_facts(model.metadata), pins=[parse_pin("blk.3.attn_q=q6_k")]
    )
    down = ours["blk.0.ffn_down.weight"]
    assert (down.wanted, down.type, down.fell_back) == (GGMLType.Q6_K, GGMLType.Q8_0, True)
    assert down.reason == "ffn_down, not_arch=falcon, more_bits; Q6_K needs rows in multiples of 256, not 160"
    assert ours["blk.3.attn_q.weight"].reason.startswith("pin blk.3.attn_q=q6_k;")
    assert ours["blk.1.attn_norm.weight"].reason == "kept as in the source"
    assert not ours["blk.1.attn_norm.weight"].fell_back


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_and_case(alias: str) -> None:
    assert find_preset(alias.lower()) is PRESETS[f"{alias}_M"]


def test_unknown_presets_are_refused_with_a_hint() -> None:
    with pytest.raises(PlanError, match=r"'Q4_KM' is no llama-quantize preset; did you mean .*Q4_K_M"):
        find_preset("Q4_KM")
    with pytest.raises(PlanError, match="presets are F32, F16"):
        find_preset("copy")


def test_fallbacks() -> None:
    assert fallback_type(GGMLType.Q4_K, 512) == GGMLType.Q4_K
    assert fallback_type(GGMLType.Q4_K, 96) == GGMLType.Q5_0
    assert fallback_type(GGMLType.IQ2_XXS, 96) == GGMLType.IQ4_NL
    assert fallback_type(GGMLType.Q6_K, 40) == GGMLType.F16
    assert fallback_type(GGMLType.Q8_0, 40) == GGMLType.F16
    assert fallback_type(GGMLType.Q1_0, 64) is None
    assert fallback_type(GGMLType.NVFP4, 32) is None
    for kind in GGMLType:
        for row in (1, 32, 40, 64, 96, 128, 256, 4096):
            fitting = fallback_type(kind, row)
            assert fitting is None or row % fitting.block_size == 0


def test_leading_ones_are_no_dimensions() -> None:
    facts = model_facts(MODELS["llama"].metadata)
    assert not quantizable(TensorFacts("blk.0.gate.weight", (1, 256), GGMLType.F16), facts)
    assert quantizable(TensorFacts("blk.0.gate.weight", (256, 1), GGMLType.F16), facts)
    assert not quantizable(TensorFacts("blk.0.ffn_up.bias", (4, 256), GGMLType.F16), facts)
    assert TensorFacts("scalar", (), GGMLType.F32).n_dims == 1


def test_facts_of_metadata() -> None:
    facts = model_facts(MODELS["llama, grouped 4:1, per layer"].metadata)
    assert (facts.n_head, facts.n_head_kv, facts.n_gqa, facts.n_expert) == (8, 2, 4, 0)
    without = model_facts(
        {"general.architecture": "llama", "llama.block_count": 3, "llama.attention.head_count": 4}
    )
    assert (without.n_gqa, without.n_layer) == (1, 3)
    array = model_facts({**MODELS["llama"].metadata, "llama.attention.head_count_kv": np.array([4, 8])})
    assert array.n_gqa == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "general.architecture"),
        ({"general.architecture": "llama"}, "llama.block_count"),
        ({"general.architecture": "llama", "llama.block_count": "many"}, "'many', not a whole number"),
    ],
)
def test_metadata_without_facts_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        model_facts(values)
