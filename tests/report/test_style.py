"""Colours can be told from their background, and text from what it stands on."""

from __future__ import annotations

import itertools

import pytest

from ewq_gguf.report.chart import COLOURS
from ewq_gguf.report.heatmap import BITS
from ewq_gguf.report.style import DARK, HEAT, LIGHT, ON_HEAT, style_sheet


def channels(colour: str) -> tuple[float, float, float]:
    """Linear red, green and blue of #rrggbb."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return r, g, b


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    r, g, b = channels(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    """Contrast ratio, WCAG 2: from 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_and_curves_stand_out(scheme: dict[str, str]) -> None:
    for name in ("text", "quiet", "link"):
        assert contrast(scheme[name], scheme["bg"]) >= 4.5, name
        assert contrast(scheme[name], scheme["card"]) >= 4.5, name
    for i in range(COLOURS):
        assert contrast(scheme[f"s{i}"], scheme["bg"]) >= 3.0, f"s{i}"
    assert len({scheme[f"s{i}"] for i in range(COLOURS)}) == COLOURS


def test_heat_can_be_read_without_seeing_colour() -> None:
    assert len(HEAT) == len(ON_HEAT) == len(BITS)
    for cell, text in zip(HEAT, ON_HEAT):
        assert contrast(cell, text) >= 4.0, cell
    shades = [luminance(colour) for colour in HEAT]
    assert all(a > 1.2 * b for a, b in itertools.pairwise(shades))


def test_the_sheet_names_every_class() -> None:
    sheet = style_sheet()
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert all(f".s{i}{{" in sheet for i in range(COLOURS))
    assert all(f".h{i}{{" in sheet for i in range(len(BITS)))
    assert sheet.count("{") == sheet.count("}")
