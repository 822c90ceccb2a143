"""config.json as untrusted input: typed look-ups under several spellings, each refusal naming the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ewq_gguf.errors import UnsupportedModelError

# Larger than any dimension that a published model has, small enough for every GGUF integer type.
MAX_INTEGER = 2**31 - 1
TEXT_SECTIONS = ("text_config", "llm_config", "lm_config", "language_config")
"""Where multimodal checkpoints describe their text model."""


class Config(Mapping[str, Any]):
    """A read-only config with the text model's part merged over the top level.

    Attributes:
        asked: the key that was looked up last, for messages.
    """

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """`defaults` stand in for keys that are absent, as the reference library's config classes do."""
        values = dict(raw)
        for key in TEXT_SECTIONS:
            nested = raw.get(key)
            if isinstance(nested, Mapping):
                values.update({k: v for k, v in nested.items() if v is not None or k not in values})
        self._values = {**(defaults or {}), **values}
        self.asked = ""

    def __getitem__(self, key: str) -> Any:
        self.asked = key
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def updated(self, **values: Any) -> Config:
        """The same config with some values replaced."""
        changed = Config({})
        changed._values = {**self._values, **values}
        return changed

    def find(self, *keys: str) -> Any:
        """The value of the first key that is present and not null, or None."""
        self.asked = keys[0]
        return next((self._values[k] for k in keys if self._values.get(k) is not None), None)

    def integer(self, *keys: str, minimum: int = 0) -> int | None:
        """A whole number in minimum..2^31-1 under any of the keys, or None when all are absent.

        Raises:
            UnsupportedModelError: the value is of another type or out of range.
        """
        for key in keys:
            self.asked = key
            value = self._values.get(key)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MAX_INTEGER:
                raise UnsupportedModelError(
                    f"config.json gives {key} = {value!r:.60}; expected a whole number from {minimum} to {MAX_INTEGER}"
                )
            return value
        return None

    def required(self, *keys: str, minimum: int = 1) -> int:
        """Like `integer`, for a number the model cannot do without.

        Raises:
            UnsupportedModelError: absent, of another type or out of range.
        """
        value = self.integer(*keys, minimum=minimum)
        if value is None:
            raise UnsupportedModelError(
                f"config.json has no {' or '.join(keys)}; the model cannot be converted"
            )
        return value

    def number(self, *keys: str) -> float | None:
        """A finite number under any of the keys, or None.

        Raises:
            UnsupportedModelError: the value is of another type or not finite.
        """
        for key in keys:
            self.asked = key
            value = self._values.get(key)
            if value is not None:
                return finite(value, key)
        return None

    def required_number(self, *keys: str) -> float:
        """Like `number`, for a value the model cannot do without.

        Raises:
            UnsupportedModelError: absent, of another type or not finite.
        """
        value = self.number(*keys)
        if value is None:
            raise UnsupportedModelError(
                f"config.json has no {' or '.join(keys)}; the model cannot be converted"
            )
        return value

    def section(self, *keys: str) -> dict[str, Any]:
        """An object under any of the keys, or an empty one.

        Raises:
            UnsupportedModelError: the value is no object.
        """
        value = self.find(*keys)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise UnsupportedModelError(f"config.json gives {keys[0]} = {value!r:.60}; expected an object")
        return dict(value)


def object_in(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under `key` of an object inside config.json, or an empty one.

    Raises:
        UnsupportedModelError: the value is no object.
    """
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnsupportedModelError(f"config.json gives {key} = {value!r:.60}; expected an object")
    return dict(value)


def finite(value: object, key: str) -> float:
    """`value` as it stands when it is a finite number.

    Raises:
        UnsupportedModelError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 3.0e38:
        raise UnsupportedModelError(f"config.json gives {key} = {value!r:.60}; expected a finite number")
    return value
