"""What the Hugging Face Hub refuses, in one sentence that says what to do."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ewq_gguf.errors import CheckpointError


@dataclass(frozen=True)
class HubId:
    """A model on the Hub; the revision is a branch, tag or commit, None for the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def url(self) -> str:
        """The model's page."""
        return f"https://huggingface.co/{self.repository}"


@contextlib.contextmanager
def explained(model: HubId, *, writing: bool = False) -> Iterator[None]:
    """Turn what the Hub answers into one sentence that says what to do.

    Args:
        writing: something is uploaded, and not downloaded.
    """
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{model.repository} is gated: accept its terms at {model.url}, then log in with `hf auth login` or set "
            "HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{model.repository} has no revision {model.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model.repository} is no path here, and the Hub has no such model or keeps it private: check the name, "
            "or log in with `hf auth login` or HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        raise CheckpointError(_status(model, error, writing)) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{model} is no path here, and no name that the Hub knows") from error
    except Exception as error:
        if is_offline(error):
            raise CheckpointError(
                f"{model} is no path here, and the Hub cannot be reached: check the connection and HF_ENDPOINT, or "
                "download the model elsewhere and name its folder"
            ) from error
        # huggingface_hub wraps what goes wrong in an upload.
        broken = isinstance(error, OSError) or (writing and isinstance(error, RuntimeError))
        if broken or type(error).__module__.startswith("httpx"):
            what = "upload to" if writing else "download of"
            said = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise CheckpointError(
                f"the {what} {model} broke off ({said}); run the same command again: files that are whole are kept"
            ) from error
        if isinstance(error, ValueError):
            raise CheckpointError(
                f"the Hub's answer for {model} is not understood; try again later, or look whether HF_ENDPOINT is right"
            ) from error
        raise


def _status(model: HubId, error: Any, writing: bool) -> str:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        return "the Hub does not accept your token; log in with `hf auth login` or set HF_TOKEN anew"
    if code == 403:
        what = "write to" if writing else "read"
        return f"your token may not {what} {model.repository}; its permissions are at https://huggingface.co/settings/tokens"
    if code == 404:
        return f"{model} has lost a file while it was being downloaded; try again"
    return f"the Hub answered with status {code} for {model}; try again later"


def is_offline(error: BaseException) -> bool:
    errors = importlib.import_module("huggingface_hub.errors")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return True
    return type(error).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
