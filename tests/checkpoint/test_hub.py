"""Models by name: what is downloaded, what is not, and what is said when it does not work."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ewq_gguf.checkpoint.folder import open_checkpoint
from ewq_gguf.checkpoint.hub import (
    HubId,
    download_model,
    hub_id_of,
    hub_origin,
    located,
    parse_hub_id,
)
from ewq_gguf.checkpoint.hub_headers import fetch_headers
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError, UnsupportedModelError
from tests.tiny.weights import store, weights, write_safetensors

from .fake_hub import TOKEN, FakeHub, Repository, serving

pytest.importorskip("huggingface_hub")
MODEL = HubId("org/tiny-model")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def original(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 300 kB in two shards, with the reference model's vocabulary."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    config = json.loads((reference / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    shutil.copy(reference / "tokenizer.model", folder)
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (4096, 32), "model.norm.weight": (32,),
        f"{layer}input_layernorm.weight": (32,), f"{layer}post_attention_layernorm.weight": (32,),
        f"{layer}self_attn.q_proj.weight": (32, 32), f"{layer}self_attn.k_proj.weight": (16, 32),
        f"{layer}self_attn.v_proj.weight": (16, 32), f"{layer}self_attn.o_proj.weight": (32, 32),
        f"{layer}mlp.gate_proj.weight": (64, 32), f"{layer}mlp.up_proj.weight": (64, 32),
        f"{layer}mlp.down_proj.weight": (32, 64),
    }  # fmt: skip
    parts = {name: SHARDS[i > 5] for i, name in enumerate(shapes)}
    for shard in SHARDS:
        stored = {n: store(weights(n, s), "BF16") for n, s in shapes.items() if parts[n] == shard}
        write_safetensors(folder / shard, stored)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return folder


@pytest.fixture
def hub(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {
        **files_of(original),
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same weights again",
        "onnx/model.onnx": b"onnx",
        "README.md": b"---\nlicense: mit\n---\n",
        ".gitattributes": b"",
        "run_me.py": b"raise SystemExit",
    }
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # What is in a chunk when the line breaks is lost; small files shall have several.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path / "ewq"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # huggingface_hub waits between attempts.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with serving(FakeHub({"org/tiny-model": Repository(files)})) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("Org-1/Name_2.5-B@refs/pr/1", HubId("Org-1/Name_2.5-B", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("./org/name", None),
        ("../name", None),
        ("~/name", None),
        ("/org/name", None),
        ("org/name.gguf", None),
        ("org/model.safetensors", None),
        ("org/na me", None),
        ("org/..", None),
        ("org/name@", None),
        ("org/a--b", None),
    ],
)
def test_what_is_a_name(text: str, expected: HubId | None) -> None:
    assert parse_hub_id(text) == expected


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id_of("org/name") is None
    assert hub_id_of(Path("org/other")) == HubId("org/other")
    assert located("org/name") == Path("org/name")
    assert located("missing.gguf") == Path("missing.gguf")


def test_only_what_is_needed(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = download_model(
        MODEL, cache=cache(tmp_path), progress=lambda stage, done, total: seen.append((stage, done, total))
    )
    assert folder.name == "tiny-model"
    names = {p.name for p in folder.iterdir()} - {".ewq-hub.json"}
    assert names == {*files_of(original), "README.md"}
    for unwanted in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "run_me.py"):
        assert hub.downloads(unwanted) == []
    checkpoint, expected = open_checkpoint(folder), open_checkpoint(original)
    assert list(checkpoint.tensors) == list(expected.tensors)
    name = "model.embed_tokens.weight"
    assert np.array_equal(checkpoint.tensors[name].rows(0, 3), expected.tensors[name].rows(0, 3))
    origin = hub_origin(folder)
    assert origin == HubId("org/tiny-model", hub.repositories["org/tiny-model"].commit)
    assert hub_origin(original) is None
    totals = {total for _, _, total in seen}
    assert len(totals) == 1
    assert seen[-1][1] == totals.pop()
    assert [d for _, d, _ in seen] == sorted(d for _, d, _ in seen)


def test_the_cache_is_used(hub: FakeHub, tmp_path: Path) -> None:
    first = download_model(MODEL, cache=cache(tmp_path))
    hub.asked.clear()
    assert download_model(MODEL, cache=cache(tmp_path)) == first
    assert [path for method, path, _ in hub.asked if "/resolve/" in path] == []


def test_without_a_connection_the_cache_is_enough(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = download_model(MODEL, cache=cache(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    # Without asking, a branch is where it was last seen; the pinned commit is exact.
    pinned = HubId("org/tiny-model", hub.repositories["org/tiny-model"].commit)
    assert download_model(pinned, cache=cache(tmp_path)) == first


def test_a_broken_download_goes_on(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    size = (original / SHARDS[0]).stat().st_size
    hub.repositories["org/tiny-model"].stops[SHARDS[0]] = [20_000]
    folder = download_model(MODEL, cache=cache(tmp_path))
    assert (folder / SHARDS[0]).read_bytes() == (original / SHARDS[0]).read_bytes()
    ranges = hub.downloads(SHARDS[0])
    assert ranges[0] == ""
    assert ranges[1].startswith("bytes=")
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) < size


def test_a_download_that_stays_broken(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    hub.repositories["org/tiny-model"].stops[SHARDS[1]] = [10_000, *[0] * 30]
    with pytest.raises(CheckpointError, match=r"broke off.*run the same command again") as caught:
        download_model(MODEL, cache=cache(tmp_path))
    assert "\n" not in str(caught.value)
    hub.repositories["org/tiny-model"].stops.clear()
    hub.asked.clear()
    folder = download_model(MODEL, cache=cache(tmp_path))
    assert (folder / SHARDS[1]).read_bytes() == (original / SHARDS[1]).read_bytes()
    assert hub.downloads(SHARDS[0]) == []
    assert hub.downloads("config.json") == []


def test_a_revision(hub: FakeHub, tmp_path: Path) -> None:
    assert download_model(HubId("org/tiny-model", "v1"), cache=cache(tmp_path)).is_dir()
    with pytest.raises(CheckpointError, match=r"no revision 'v2'"):
        download_model(HubId("org/tiny-model", "v2"), cache=cache(tmp_path))


def test_there_is_no_such_model(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/nothing is no path here.*hf auth login"):
        download_model(HubId("org/nothing"), cache=cache(tmp_path))


def test_a_private_model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/tiny-model"].private = True
    with pytest.raises(CheckpointError, match=r"keeps it private.*HF_TOKEN"):
        download_model(MODEL, cache=cache(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download_model(MODEL, cache=cache(tmp_path)).is_dir()


def test_a_gated_model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/tiny-model"].gated = True
    with pytest.raises(CheckpointError, match=r"gated: accept its terms at https://huggingface\.co/org/tiny"):
        download_model(MODEL, cache=cache(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download_model(MODEL, cache=cache(tmp_path)).is_dir()


def test_a_wrong_token(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointError, match="token"):
        download_model(MODEL, cache=cache(tmp_path))


def test_a_hub_in_trouble(hub: FakeHub, tmp_path: Path) -> None:
    hub.status = 418
    with pytest.raises(CheckpointError, match="status 418"):
        download_model(MODEL, cache=cache(tmp_path))


def test_no_connection(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be reached") as caught:
        download_model(MODEL, cache=cache(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'ewq-gguf\[hub\]'"):
        located("org/name")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "pickled"),
        ({"config.json": b"{}", "model-Q4_K_M.gguf": b""}, "GGUF"),
        ({"config.json": b"{}"}, "no weights"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "LoRA"),
        ({"model_index.json": b"{}"}, "diffusion"),
    ],
)
def test_what_cannot_be_converted(hub: FakeHub, tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    hub.repositories["org/other"] = Repository(files)
    with pytest.raises(UnsupportedModelError, match=says):
        download_model(HubId("org/other"), cache=cache(tmp_path))
    assert hub.downloads("pytorch_model.bin") == []


def test_an_index_that_names_what_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../x.safetensors", "b": "model.safetensors"}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, "model.safetensors": b""}
    hub.repositories["org/other"] = Repository(files)
    with pytest.raises(CheckpointError, match="lacks 1 shards"):
        download_model(HubId("org/other"), cache=cache(tmp_path))


def test_weights_under_another_name(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    files = {"config.json": b"{}", "consolidated.safetensors": (original / SHARDS[0]).read_bytes()}
    hub.repositories["org/other"] = Repository(files)
    path = download_model(HubId("org/other"), cache=cache(tmp_path))
    assert path.name == "consolidated.safetensors"
    assert open_checkpoint(path).tensors


def test_headers_alone(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    folder = fetch_headers(MODEL, cache=cache(tmp_path))
    ours, theirs = open_checkpoint(folder), open_checkpoint(original)
    assert {n: (t.shape, t.dtype) for n, t in ours.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.tensors.items()
    }
    assert all(r.startswith("bytes=0-") for shard in SHARDS for r in hub.downloads(shard))
    taken = sum(p.stat().st_blocks * 512 for p in folder.glob("*.safetensors"))
    assert taken < ours.size / 10
    assert folder.name == "tiny-model"


def test_headers_longer_than_the_first_request(
    hub: FakeHub, tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ewq_gguf.checkpoint.hub_headers._FIRST", 100)
    folder = fetch_headers(MODEL, cache=cache(tmp_path))
    assert len(open_checkpoint(folder).tensors) == len(open_checkpoint(original).tensors)
    assert len(hub.downloads(SHARDS[0])) == 2


def test_headers_from_a_server_without_ranges(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["org/tiny-model"].ranges = False
    with pytest.raises(CheckpointError, match="does not serve parts"):
        fetch_headers(MODEL, cache=cache(tmp_path))


def test_a_header_that_lies(hub: FakeHub, tmp_path: Path) -> None:
    files = hub.repositories["org/tiny-model"].files
    files[SHARDS[0]] = (2**60).to_bytes(8, "little") + b"{}" * 100
    with pytest.raises(CheckpointError, match="no safetensors file"):
        fetch_headers(MODEL, cache=cache(tmp_path))


def test_the_command_line(hub: FakeHub, tmp_path: Path, original: Path) -> None:
    """A name in place of a folder: the same file, and none of the weights for a dry run that reads none."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in ("-q", *arguments)])

    dry = run("plan", "org/tiny-model", "--type", "Q8_0", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert all(r.startswith("bytes=0-") for shard in SHARDS for r in hub.downloads(shard))
    assert run("fastewq", "show", "org/tiny-model", "--json").exit_code == 0
    assert all(r.startswith("bytes=0-") for shard in SHARDS for r in hub.downloads(shard))
    done = run("convert", "org/tiny-model", "-o", tmp_path / "m.gguf", "--type", "Q8_0")
    assert done.exit_code == 0, done.output
    assert run("convert", original, "-o", tmp_path / "same.gguf", "--type", "Q8_0").exit_code == 0
    ours, theirs = (
        json.loads(run("inspect", tmp_path / n, "--json").stdout) for n in ("m.gguf", "same.gguf")
    )
    assert ours["tensors"] == theirs["tensors"]
    assert ours["metadata"]["general.source.repo_url"] == "https://huggingface.co/org/tiny-model"
    assert ours["metadata"]["general.name"] == "Tiny Model"
    assert run("analyze", "org/tiny-model", "--json").exit_code == 0
    failed = run("convert", "org/nothing", "-o", tmp_path / "n.gguf")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: org/nothing is no path here")
    assert failed.stderr.count("\n") == 1
