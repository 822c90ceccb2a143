"""The headers of a model on the Hub without its weights: enough to see, and to plan where no weight is looked at.

Each shard's header is asked for by byte range and written into a file as long as the shard, of which only the header
takes room on disk. The files open like the real ones; whoever reads a weight of them reads zeros, so this is for
callers that do not.
"""

from __future__ import annotations

import atexit
import importlib
import re
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.hub import (
    SMALL_FILES,
    Listing,
    Progress,
    choose_weights,
    endpoint,
    fetch_file,
    hub_library,
    link_view,
    list_files,
    model_path,
)
from ewq_gguf.checkpoint.hub_errors import HubId, explained
from ewq_gguf.checkpoint.safetensors import MAX_HEADER_BYTES
from ewq_gguf.errors import CheckpointError

# The first request; most headers fit.
_FIRST = 1 << 16
_TIMEOUT = 30.0


def fetch_headers(model: HubId, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """A folder with the model's small files and its shards' headers; removed when the process ends.

    Raises:
        CheckpointError: as `download_model`, or the Hub does not serve byte ranges.
        UnsupportedModelError: the model has no safetensors.
    """
    hub = hub_library(model)
    folder = Path(tempfile.mkdtemp(prefix="ewq-gguf-headers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with explained(model):
        listing = list_files(model)
        files = {
            name: fetch_file(hub, listing, name, cache, None) for name in listing.sizes if name in SMALL_FILES
        }
        shards = choose_weights(listing, lambda name: fetch_file(hub, listing, name, cache, None))
        for name in (s for s in shards if s.endswith(".json")):
            files[name] = fetch_file(hub, listing, name, cache, None)
        view = link_view(listing, files, folder / model.repository.partition("/")[2])
        weights = [name for name in shards if name.endswith(".safetensors")]
        for i, name in enumerate(weights):
            _write_header(hub, listing, name, view / name)
            if progress is not None:
                progress("Reading headers", i + 1, len(weights))
    return model_path(view, shards)


def _write_header(hub: Any, listing: Listing, name: str, path: Path) -> None:
    url = hub.hf_hub_url(listing.model.repository, name, revision=listing.commit, endpoint=endpoint())
    start, size = _range(hub, url, name, 0, _FIRST)
    if len(start) < 8:
        raise CheckpointError(f"{name} of {listing.model} is no safetensors file: it has {size} bytes")
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{name} of {listing.model} is no safetensors file: its header would have {length:,} bytes"
        )
    missing = 8 + length - len(start)
    if missing > 0:
        more, again = _range(hub, url, name, len(start), missing)
        if again != size or len(more) != missing:
            raise CheckpointError(f"{name} of {listing.model} changed while it was being read; try again")
        start += more
    with path.open("wb") as file:
        file.write(start[: 8 + length])
        file.truncate(size)


def _range(hub: Any, url: str, name: str, begin: int, n: int) -> tuple[bytes, int]:
    """Some bytes of a file, and the size of all of it."""
    utils = importlib.import_module("huggingface_hub.utils")
    headers = {
        **utils.build_hf_headers(),
        "Range": f"bytes={begin}-{begin + n - 1}",
        "Accept-Encoding": "identity",
    }
    with utils.get_session().stream(
        "GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True
    ) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("content-range", ""))
        if response.status_code != 206 or told is None or int(told[1]) != begin:
            raise CheckpointError(
                f"the Hub does not serve parts of {name}; leave out --dry-run to download the model"
            )
        body = response.read()
    if len(body) != int(told[2]) - begin + 1:
        raise CheckpointError(f"the header of {name} broke off; try again")
    return body, int(told[3])
