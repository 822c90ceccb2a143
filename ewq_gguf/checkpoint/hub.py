"""Models on the Hugging Face Hub: named as org/name[@revision], fetched file by file, and only the files needed.

Downloads are huggingface_hub's (an optional extra): a broken line is taken up by byte range, whole files are kept in its
cache for the next run, with the token it knows. What comes out is an ordinary folder of links into that cache, which carries the model's name as a clone of it would.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.checkpoint.hub_errors import HubId, explained, is_offline
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import CheckpointError, UnsupportedModelError

Progress = Callable[[str, int, int], None]
ORIGIN_NAME = ".ewq-hub.json"
_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Everything that config, tokenizer and model card of a checkpoint may consist of.
SMALL_FILES = frozenset(
    {
        "README.md", "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
        "generation_config.json", "hy.tiktoken", "merges.txt", "modules.json", "params.json", "qwen.tiktoken",
        "rwkv_vocab_v20230424.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "tekken.json", "tiktoken.model",
        "tokenizer.json", "tokenizer.jsonl", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
        "1_Pooling/config.json",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit: names at the root and below, with sizes in bytes where known."""

    model: HubId
    commit: str
    sizes: dict[str, int]


def parse_hub_id(text: str) -> HubId | None:
    """org/name or org/name@revision as a `HubId`, None for anything else."""
    match = _ID.fullmatch(text)
    if match is None or match["repository"].endswith((".gguf", ".safetensors", ".json", ".git")):
        return None
    if ".." in text or "--" in match["repository"]:
        return None
    return HubId(match["repository"], match["revision"])


def hub_id_of(model: str | os.PathLike[str]) -> HubId | None:
    """The model on the Hub that is meant, None where a local path is: a path that exists always wins."""
    path = Path(model)
    return None if os.path.lexists(path) else parse_hub_id(path.as_posix())


def located(
    model: str | os.PathLike[str], *, headers_only: bool = False, progress: Progress | None = None
) -> Path:
    """The local path of a model, downloaded first where it is one on the Hub.

    Args:
        headers_only: weights will not be read: fetch the headers of the shards alone.
        progress: called with (stage, bytes done, bytes in all).

    Raises:
        CheckpointError: the Hub has no such model, does not show it, or cannot be reached.
        UnsupportedModelError: the model has no safetensors.
    """
    found = hub_id_of(model)
    if found is None:
        return Path(model)
    if headers_only:
        from ewq_gguf.checkpoint.hub_headers import fetch_headers

        return fetch_headers(found, progress=progress)
    return download_model(found, progress=progress)


def download_model(model: HubId, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Download what a conversion needs; what the cache holds already is not asked for again.

    Args:
        cache: huggingface_hub's cache folder, its own default by default.

    Raises:
        CheckpointError, UnsupportedModelError: see `located`.
    """
    hub = hub_library(model)
    with explained(model):
        try:
            listing = list_files(model)
        except Exception as error:
            if not is_offline(error):
                raise
            return _from_cache(hub, model, cache, error)
        small = [name for name in listing.sizes if name in SMALL_FILES]
        shards = choose_weights(listing, lambda name: fetch_file(hub, listing, name, cache, None))
        _check_room(hub, listing, shards, cache)
        total = sum(listing.sizes[name] for name in (*small, *shards))
        done, files = 0, {}
        for name in (*small, *shards):
            files[name] = fetch_file(hub, listing, name, cache, _counter(progress, done, total))
            done += listing.sizes[name]
            if progress is not None:
                progress("Downloading", done, total)
    return model_path(link_view(listing, files), shards)


def list_files(model: HubId) -> Listing:
    """Ask the Hub what a repository holds."""
    info = hub_library(model).HfApi(endpoint=endpoint()).model_info(
        model.repository, revision=model.revision, files_metadata=True
    )  # fmt: skip
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"the Hub did not say which commit {model} is at; try again later")
    return Listing(model, info.sha, {s.rfilename: s.size or 0 for s in info.siblings or ()})


def choose_weights(listing: Listing, fetch: Callable[[str], Path]) -> list[str]:
    """The safetensors files that together hold the model once, and nothing a second time.

    Args:
        fetch: downloads a file and says where it lies.

    Raises:
        CheckpointError: the index names what is not there.
        UnsupportedModelError: there are none.
    """
    names, model = listing.sizes, listing.model
    if "config.json" not in names:
        for name, what in (
            ("adapter_config.json", "a LoRA adapter; merge it into its base model first"),
            ("model_index.json", "a diffusion pipeline, not a language model"),
        ):
            if name in names:
                raise UnsupportedModelError(f"{model} holds {what}")
    root = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if INDEX_NAME in names:
        wanted = load_json_object(fetch(INDEX_NAME)).get("weight_map")
        shards = sorted({str(v) for v in wanted.values()}) if isinstance(wanted, dict) else []
        missing = [name for name in shards if name not in root]
        if missing or not shards:
            raise CheckpointError(
                f"{model} lacks {len(missing)} shards that its {INDEX_NAME} names, first {str(missing[:1])[:80]}; "
                "tell its authors"
            )
        return [INDEX_NAME, *shards]
    if "model.safetensors" in root:
        return ["model.safetensors"]
    numbered = [name for name in root if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if numbered:
        return numbered
    if root == ["consolidated.safetensors"]:
        return root
    if any(name.endswith(".gguf") for name in names):
        raise UnsupportedModelError(
            f"{model} holds GGUF files and no safetensors; download one with `hf download {model.repository} FILE.gguf`"
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise UnsupportedModelError(
            f"{model} has only pickled weights (.bin, .pt), which can run code when opened; look for a revision or "
            "a copy with safetensors"
        )
    raise UnsupportedModelError(f"{model} has no model*.safetensors, so there are no weights to convert")


def link_view(listing: Listing, files: dict[str, Path], folder: Path | None = None) -> Path:
    """A folder named like the model, with links to the downloaded files and a note of where they come from."""
    name = listing.model.repository.partition("/")[2]
    if folder is None:
        folder = _views() / listing.model.repository / listing.commit[:12] / name
    try:
        for relative, target in files.items():
            link = folder / PurePosixPath(relative)
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(target, link)
        origin = {"repository": listing.model.repository, "commit": listing.commit}
        (folder / ORIGIN_NAME).write_text(json.dumps(origin) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def hub_origin(folder: Path) -> HubId | None:
    """Where a folder that `download_model` made comes from, the revision being the commit; None for any other."""
    try:
        found = load_json_object(folder / ORIGIN_NAME)
    except CheckpointError:
        return None
    return parse_hub_id(f"{found.get('repository')}@{found.get('commit')}")


def hub_library(model: HubId) -> Any:
    """huggingface_hub, imported when first needed.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            f"{model} is no path here; to take it from the Hugging Face Hub, install: pip install 'ewq-gguf[hub]'"
        ) from error


def endpoint() -> str | None:
    """The Hub's address where HF_ENDPOINT names another."""
    return os.environ.get("HF_ENDPOINT") or None


def fetch_file(hub: Any, listing: Listing, name: str, cache: Path | None, bar: Any) -> Path:
    return Path(
        hub.hf_hub_download(
            listing.model.repository,
            name,
            revision=listing.commit,
            cache_dir=cache,
            endpoint=endpoint(),
            tqdm_class=bar or _counter(None, 0, 0),
        )
    )


def _from_cache(hub: Any, model: HubId, cache: Path | None, error: Exception) -> Path:
    """What was downloaded before, without asking the Hub whether it is still the newest."""
    try:
        snapshot = Path(
            hub.snapshot_download(
                model.repository, revision=model.revision, cache_dir=cache, local_files_only=True
            )
        )
    except Exception:
        raise error from None
    sizes = {p.relative_to(snapshot).as_posix(): p.stat().st_size for p in snapshot.rglob("*") if p.is_file()}
    listing = Listing(model, snapshot.name, sizes)
    try:
        shards = choose_weights(listing, lambda name: snapshot / name)
    except (CheckpointError, UnsupportedModelError):
        # Half a model is no model: the connection is what is missing.
        raise error from None
    files = {name: snapshot / name for name in sizes if name in SMALL_FILES or name in shards}
    return model_path(link_view(listing, files), shards)


def model_path(view: Path, shards: Sequence[str]) -> Path:
    return view / shards[0] if list(shards) == ["consolidated.safetensors"] else view


def _check_room(hub: Any, listing: Listing, shards: Sequence[str], cache: Path | None) -> None:
    folder = cache or Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    there = folder / f"models--{listing.model.repository.replace('/', '--')}"
    needed = sum(
        listing.sizes[name] for name in shards if not (there / "snapshots" / listing.commit / name).exists()
    )
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{listing.model} takes {needed:,} bytes and {folder} has {free:,} left; make room, or set HF_HOME to "
            "a larger disk"
        )


def _views() -> Path:
    """Where folders of links are kept: EWQ_GGUF_CACHE, XDG_CACHE_HOME/ewq-gguf or ~/.cache/ewq-gguf, under hub."""
    base = os.environ.get("EWQ_GGUF_CACHE")
    root = (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ewq-gguf"
    )
    return root / "hub"


def _link(target: Path, link: Path) -> None:
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    target = target.resolve()
    if link.is_file() and link.samefile(target):
        return
    try:
        partial.symlink_to(target)
    except OSError:
        # Some systems let only administrators make symbolic links.
        os.link(target, partial)
    partial.replace(link)


def _counter(progress: Progress | None, before: int, total: int) -> type:
    """A class that stands where huggingface_hub expects tqdm, and tells `progress` instead."""

    class Counter:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n = initial

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if progress is not None:
                progress("Downloading", min(before + self.n, total), total)

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None

    return Counter
