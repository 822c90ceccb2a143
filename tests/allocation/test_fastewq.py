"""FastEWQ: the forest's arithmetic, its file, its features from headers alone, and its training."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.allocation.analysis import analyze_model
from ewq_gguf.allocation.ewq import Precision
from ewq_gguf.allocation.fastewq import (
    FEATURES,
    SHIPPED,
    BlockFeatures,
    block_features,
    decide_blocks,
    exec_index,
    load_forest,
)
from ewq_gguf.allocation.forest import LEAF, Forest, Tree, read_forest
from ewq_gguf.allocation.labels import (
    Row,
    accuracy,
    label_rows,
    leave_one_model_out,
    read_rows,
    rows_to_csv,
    split_rows,
    train,
)
from ewq_gguf.api import guess, plan
from ewq_gguf.arch import family_for
from ewq_gguf.checkpoint import open_checkpoint
from ewq_gguf.cli import cli
from ewq_gguf.decision import Decision
from ewq_gguf.errors import EwqError, PlanError
from ewq_gguf.headers import header_features
from ewq_gguf.pipeline.source import load_model
from tests.tiny.build import build
from tests.tiny.cases import CASES

LABELS = Path(__file__).parents[2] / "benchmarks" / "data" / "fastewq_labels.csv"


def random_rows(n: int, seed: int) -> np.ndarray:
    """Rows in the range of the features, with many that lie near thresholds."""
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [
            np.exp(rng.uniform(math.log(1e5), math.log(2e10), n)).round(),
            rng.integers(1, 130, n),
            rng.integers(2, 132, n),
        ]
    )


def walk(tree: Tree, row: np.ndarray) -> np.ndarray:
    """One row down one tree, a node at a time."""
    at = 0
    while tree.left[at] != LEAF:
        low = np.float32(row[tree.feature[at]]) <= tree.threshold[at]
        at = int(tree.left[at] if low else tree.right[at])
    return tree.value[at]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_forests(name: str) -> None:
    forest = load_forest(name)
    assert forest.name == name
    assert forest.features == FEATURES
    rows = random_rows(50, 1)
    found = forest.predict_proba(rows)
    for row, probability in zip(rows, found):
        expected = np.zeros(2)
        for tree in forest.trees:
            expected += walk(tree, row)
        assert (probability == expected / len(forest.trees)).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert forest.about["leave_one_model_out"]["forest"].keys() == {"mean", "se"}
    assert forest.about["rows"] <= len(read_rows(LABELS))


def test_same_as_scikit_learn_to_the_last_bit() -> None:
    """What is shipped is what scikit-learn computes, and any forest it fits is evaluated alike."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows = read_rows(LABELS)
    classifier = ensemble.RandomForestClassifier(n_estimators=100, random_state=0)
    classifier.fit([r.features for r in rows], [r.quantized for r in rows])
    table = random_rows(10_000, 2)
    assert (load_forest("fast").predict_proba(table) == classifier.predict_proba(table)).all()
    assert train(rows, "fast").digest == load_forest("fast").digest
    rng = np.random.default_rng(3)
    noisy = [Row("m", i, int(r[0]), int(r[1]), int(r[2]), 1.0, ["raw", "8-bit"][rng.integers(2)])
             for i, r in enumerate(random_rows(400, 4))]  # fmt: skip
    again = train(noisy, "noisy")
    classifier.fit([r.features for r in noisy], [r.quantized for r in noisy])
    assert (again.predict_proba(table) == classifier.predict_proba(table)).all()
    assert max(len(t.feature) for t in again.trees) > 100


def small_forest() -> Forest:
    stump = Tree(
        np.array([2, 0, 0]),
        np.array([10.5, 0.0, 0.0]),
        np.array([1, LEAF, LEAF]),
        np.array([2, LEAF, LEAF]),
        np.array([[0, 0], [1.0, 0.0], [0.25, 0.75]]),
    )
    return Forest("stump", FEATURES, (stump, stump), {"rows": 3})


def test_forest_files_round_trip(tmp_path: Path) -> None:
    forest = small_forest()
    path = tmp_path / "f.json"
    path.write_text(forest.to_json())
    again = read_forest(path)
    assert again.digest == forest.digest
    assert again.to_json() == forest.to_json()
    assert again.predict_proba([[1, 1, 10], [1, 1, 11]]).tolist() == [[1.0, 0.0], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format="tree"), "not a version 1 classifier"),
        (lambda d: d.update(version=2), "not a version 1 classifier"),
        (lambda d: d.update(trees=[]), "no trees"),
        (lambda d: d.update(features=[]), "no list of features"),
        (lambda d: d.update(digest="0" * 64), "digest"),
        (lambda d: d["trees"][0]["leaves"][0].__setitem__(0, 0.5), "digest"),
        (lambda d: d["trees"][0].pop("left"), "damaged"),
        (lambda d: d["trees"][0].update(feature=["x", 0, 0]), "damaged"),
        (lambda d: d["trees"][0].update(feature=[3, 0, 0]), "do not form a tree"),
        (lambda d: d["trees"][0].update(left=[0, -1, -1]), "do not form a tree"),
        (lambda d: d["trees"][0].update(right=[3, -1, -1]), "do not form a tree"),
        (lambda d: d["trees"][0].update(threshold=[1.0]), "do not form a tree"),
        (lambda d: d["trees"][0]["leaves"].pop(), "do not form a tree"),
        (lambda d: d["trees"][0].update(feature=[], threshold=[], left=[], right=[], leaves=[]), "tree"),
    ],
)
def test_damaged_forests_are_refused(tmp_path: Path, change: Callable[[Any], Any], says: str) -> None:
    data = json.loads(small_forest().to_json())
    change(data)
    path = tmp_path / "f.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=says):
        read_forest(path)


def test_unknown_forests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="fast or fast-train"):
        load_forest("slow")
    other = Forest("other", ("a", "b", "c"), small_forest().trees)
    path = tmp_path / "f.json"
    path.write_text(other.to_json())
    with pytest.raises(PlanError, match="expects the features a, b, c"):
        load_forest(str(path))


def features(n: int) -> list[BlockFeatures]:
    return [BlockFeatures(i, 1000, n, exec_index(i)) for i in range(n)]


def test_few_bits_go_to_the_last_blocks() -> None:
    # The stump quantizes exec_index > 10: blocks 9 to 19, 11 of them; 32 % of 11 is 3.5, rounded 3.
    verdicts = decide_blocks(small_forest(), features(20))
    classes = [v.precision for v in verdicts]
    assert classes == [Precision.RAW] * 9 + [Precision.EIGHT_BIT] * 8 + [Precision.FOUR_BIT] * 3
    assert verdicts[9].exec_index == 11
    assert [v.probability for v in verdicts] == [0.0] * 9 + [0.75] * 11


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.floats(0, 6))
def test_verdicts_are_ordered(n: int, x: float) -> None:
    classes = [list(Precision).index(v.precision) for v in decide_blocks(small_forest(), features(n), x=x)]
    assert classes == sorted(classes)
    assert (x > 0) or Precision.EIGHT_BIT not in [list(Precision)[c] for c in classes]


def test_reference_features(reference: Path) -> None:
    model = load_model(reference)
    found = block_features(model)
    assert found == header_features(reference)
    assert [f.row for f in found][:2] == [(786_432, 12, 2), (786_432, 12, 3)]
    assert [f.num_parameters for f in found] == [b.parameters for b in analyze_model(model).blocks]


@pytest.mark.parametrize(
    "case", [c for c in CASES if "moe" in c.name or "mixtral" in c.name or "next" in c.name or "deepseek" in c.name]
)  # fmt: skip
def test_experts_are_counted_without_being_listed(case: Any, tmp_path: Path) -> None:
    folder = build(case, tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)(checkpoint.config, checkpoint.tensors)
    assert header_features(folder) == block_features(family.tensors())


def test_damaged_checkpoints_are_named_as_ever(checkpoint_copy: Path) -> None:
    shard = checkpoint_copy / "model-00002-of-00002.safetensors"
    shard.write_bytes(struct.pack("<Q", 2**60) + shard.read_bytes()[8:])
    with pytest.raises(EwqError, match="00002-of-00002"):
        header_features(checkpoint_copy)
    shard.unlink()
    with pytest.raises(EwqError, match="00002-of-00002"):
        header_features(checkpoint_copy)


def deepseek_v3(folder: Path) -> int:
    """Headers of a 671B checkpoint in FP8: 163 sparse shards, 90,427 tensors. Returns its weights."""
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 129280,
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "qk_nope_head_dim": 128, "routed_scaling_factor": 2.5, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}

    def plain(name: str, *shape: int, dtype: str = "BF16") -> None:
        tensors[name] = (dtype, shape)

    def fp8(name: str, *shape: int) -> None:
        plain(f"{name}.weight", *shape, dtype="F8_E4M3")
        plain(f"{name}.weight_scale_inv", *(-(-n // 128) for n in shape), dtype="F32")

    def mlp(prefix: str, width: int) -> None:
        fp8(f"{prefix}.gate_proj", width, 7168)
        fp8(f"{prefix}.up_proj", width, 7168)
        fp8(f"{prefix}.down_proj", 7168, width)

    plain("model.embed_tokens.weight", 129280, 7168)
    plain("lm_head.weight", 129280, 7168)
    plain("model.norm.weight", 7168)
    for i in range(61):
        layer = f"model.layers.{i}"
        plain(f"{layer}.input_layernorm.weight", 7168)
        plain(f"{layer}.post_attention_layernorm.weight", 7168)
        plain(f"{layer}.self_attn.q_a_layernorm.weight", 1536)
        plain(f"{layer}.self_attn.kv_a_layernorm.weight", 512)
        for name, shape in {
            "q_a_proj": (1536, 7168), "q_b_proj": (24576, 1536), "kv_a_proj_with_mqa": (576, 7168),
            "kv_b_proj": (32768, 512), "o_proj": (7168, 16384),
        }.items():  # fmt: skip
            fp8(f"{layer}.self_attn.{name}", *shape)
        if i < 3:
            mlp(f"{layer}.mlp", 18432)
            continue
        plain(f"{layer}.mlp.gate.weight", 256, 7168)
        plain(f"{layer}.mlp.gate.e_score_correction_bias", 256, dtype="F32")
        mlp(f"{layer}.mlp.shared_experts", 2048)
        for e in range(256):
            mlp(f"{layer}.mlp.experts.{e}", 2048)
    sizes = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
    names = list(tensors)
    per_shard = -(-len(names) // 163)
    owner = {}
    for k in range(163):
        file, at, header = f"model-{k + 1:05d}-of-000163.safetensors", 0, {}
        for name in names[k * per_shard : (k + 1) * per_shard]:
            dtype, shape = tensors[name]
            end = at + math.prod(shape) * sizes[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            owner[name], at = file, end
        raw = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(raw)) + raw)
            out.truncate(8 + len(raw) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owner}))
    return sum(math.prod(s) for n, (_, s) in tensors.items() if n.startswith("model.layers") and len(s) > 1 and n.endswith(".weight"))  # fmt: skip


_MEASURED = """
import sys, time
from ewq_gguf.api import guess
began = time.process_time()
verdicts = guess(sys.argv[1])[1]
seconds = time.process_time() - began
# The peak of this program; getrusage would tell that of the process it was forked from.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, peak, len(verdicts), verdicts[60].parameters, sum(v.parameters for v in verdicts))
"""


def measured(folder: Path) -> list[float]:
    """Seconds of the process, peak kilobytes, blocks, weights of the last and of all blocks."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(folder)], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_671b_headers_in_200_megabytes(tmp_path: Path) -> None:
    weights = deepseek_v3(tmp_path)
    _, kilobytes, blocks, last, total = measured(tmp_path)
    assert kilobytes < 200_000
    assert (blocks, total) == (61, weights)
    assert last > 11e9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_671b_headers_in_a_second(tmp_path: Path) -> None:
    deepseek_v3(tmp_path)
    # The least of a few: the machine may be busy with others.
    assert min(measured(tmp_path)[0] for _ in range(5)) < 1.0


def test_method_fastewq(reference: Path) -> None:
    _, verdicts = guess(reference)
    chosen = plan(reference, Decision(method="fastewq"))
    assert chosen.method == "fastewq"
    assert chosen.parameters["forest_digest"] == load_forest("fast").digest
    types = chosen.types()
    for v in verdicts:
        raw = v.precision is Precision.RAW
        assert types[f"blk.{v.index}.ffn_up.weight"].name == ("BF16" if raw else "Q8_0")
    mixed = plan(reference, Decision(method="fastewq", variant="4bit-8bit-mixed"))
    for v in verdicts:
        kind = {"raw": "BF16", "8-bit": "Q8_0", "4-bit": "Q4_K"}[v.precision.value]
        assert mixed.types()[f"blk.{v.index}.ffn_up.weight"].name == kind


def test_a_size_demotes_the_last_blocks_first(reference: Path) -> None:
    chosen = plan(reference, Decision(method="fastewq", size=15_000_000))
    classes = [b["class"] for b in chosen.parameters["blocks"]]
    assert classes == sorted(classes, reverse=True)
    assert {"raw", "8-bit"} == set(classes)
    assert chosen.data_bytes < 15_000_000


def test_labels_of_the_reference_model(reference: Path) -> None:
    model = load_model(reference)
    rows = label_rows("reference-10m", model, analyze_model(model, only_blocks=True))
    assert rows == [r for r in read_rows(LABELS) if r.model == "reference-10m"]
    assert [r.quantized for r in rows] == [0] * 5 + [1] * 7


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = read_rows(LABELS)
    path = tmp_path / "rows.csv"
    path.write_text(rows_to_csv(rows))
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'model'"),
        ("model,block\n", "no column 'num_parameters'"),
        ("model,block,num_parameters,num_blocks,exec_index,entropy,label\n", "no rows"),
        ("model,block,num_parameters,num_blocks,exec_index,entropy,label\nm,0,x,1,2,4.6,raw\n", "line 2"),
        ("model,block,num_parameters,num_blocks,exec_index,entropy,label\nm,0,9,1,2,4.6,5-bit\n", "5-bit"),
        ("model,block,num_parameters,num_blocks,exec_index,entropy,label\nm,0,9,1,2,nan,raw\n", "line 2"),
        ("model,block,num_parameters,num_blocks,exec_index,entropy,label\nm,0\n", "line 2"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(PlanError, match=says):
        read_rows(path)


def test_training_and_what_it_is_worth(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    # Three models that follow one rule: the second half is quantized. Every rule but the constant ones finds it.
    rows = [
        Row(f"m{m}", i, 1000, 20, exec_index(i), 4.6, "8-bit" if i >= 10 else "raw")
        for m in range(3)
        for i in range(20)
    ]
    found = leave_one_model_out(rows)
    assert found is not None
    assert found["forest"]["mean"] == found["position"]["mean"] == 1.0
    assert found["raw"]["mean"] == 0.5
    assert [m["rows"] for m in found["models"]] == [20, 20, 20]
    assert leave_one_model_out(rows[:20]) is None
    fit, tested = split_rows(rows)
    assert (len(fit), len(tested)) == (42, 18)
    assert accuracy(train(fit, "half"), tested) == 1.0
    with pytest.raises(PlanError, match="all of one class"):
        train([r for r in rows if r.quantized], "one")
    dataset, forest = tmp_path / "rows.csv", tmp_path / "f.json"
    dataset.write_text(rows_to_csv(rows))
    done = CliRunner().invoke(cli, ["fastewq", "train", str(dataset), "-o", str(forest), "--split", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["digest"] == load_forest(str(forest)).digest


def test_commands(reference: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["fastewq", "show", str(reference), "--json"])
    assert [b["exec_index"] for b in json.loads(shown.stdout)["blocks"]] == list(range(2, 14))
    out = tmp_path / "rows.csv"
    done = CliRunner().invoke(
        cli, ["fastewq", "label", str(reference), "--name", "reference-10m", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert out.read_text() == "".join(
        line for i, line in enumerate(LABELS.read_text().splitlines(keepends=True)) if i == 0 or line.startswith("reference-10m,")
    )  # fmt: skip
    table = CliRunner().invoke(cli, ["convert", str(reference), "--dry-run", "--method", "fastewq"])
    assert table.exit_code == 0, table.output
    assert "probability" in table.stdout
