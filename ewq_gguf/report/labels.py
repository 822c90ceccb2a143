"""Places for labels beside points, such that no label covers another or a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_CHARACTER, _HEIGHT, _GAP = 6.6, 13.0, 7.0


@dataclass(frozen=True)
class Box:
    """A rectangle in picture units."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        """Whether two rectangles share more than an edge."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def inside(self, frame: Box) -> bool:
        """Whether this rectangle lies in `frame`."""
        return (
            self.x >= frame.x
            and self.y >= frame.y
            and self.x + self.width <= frame.x + frame.width
            and self.y + self.height <= frame.y + frame.height
        )


@dataclass(frozen=True)
class Placed:
    """Where a label's text starts (its baseline's left end)."""

    text: str
    x: float
    y: float
    box: Box


def text_width(text: str) -> float:
    """Width of a label in picture units, on the safe side."""
    return len(text) * _CHARACTER


def place_labels(
    wanted: Sequence[tuple[str, float, float]], obstacles: Sequence[tuple[float, float]], frame: Box
) -> list[Placed]:
    """Put each label next to its point, in the first of twelve places that is free; the others are left out.

    Args:
        wanted: (text, x, y) of the points, the most important first.
        obstacles: points that no label may cover.
        frame: where labels may stand.
    """
    taken = [Box(x - 5, y - 5, 10, 10) for x, y in obstacles]
    placed: list[Placed] = []
    for text, x, y in wanted:
        for box in _places(x, y, text_width(text)):
            if box.inside(frame) and not any(box.meets(other) for other in taken):
                taken.append(box)
                placed.append(Placed(text, box.x, box.y + _HEIGHT - 3, box))
                break
    return placed


def _places(x: float, y: float, width: float) -> list[Box]:
    sides = [
        (x + _GAP, y - _HEIGHT - 2), (x - _GAP - width, y + 2), (x + _GAP, y - _HEIGHT / 2),
        (x - _GAP - width, y - _HEIGHT / 2), (x - width / 2, y - _HEIGHT - _GAP), (x - width / 2, y + _GAP),
        (x + _GAP, y + 2), (x - _GAP - width, y - _HEIGHT - 2), (x + 2 * _GAP, y - 2 * _HEIGHT),
        (x - 2 * _GAP - width, y + _HEIGHT), (x + 2 * _GAP, y + _HEIGHT),
        (x - 2 * _GAP - width, y - 2 * _HEIGHT),
    ]  # fmt: skip
    return [Box(left, top, width, _HEIGHT) for left, top in sides]
