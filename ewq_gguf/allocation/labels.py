"""FastEWQ's training: rows made by full analysis, a forest fitted to them, and what it is honestly worth.

Blocks of one model are no independent samples, so accuracy is measured by leaving out one model at a time,
and its uncertainty is taken over models.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.ewq import Precision, classify
from ewq_gguf.allocation.fastewq import FEATURES, block_features
from ewq_gguf.allocation.forest import Forest, from_sklearn
from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import PlanError
from ewq_gguf.model import Model

TREES = 100
TRAIN_SHARE = 0.7
SEED = 0
RULES = ("forest", "majority", "position", "raw")


@dataclass(frozen=True)
class Row:
    """One block: the features, and what full analysis made of it.

    Attributes:
        model: what the row comes from; rows of one model belong together.
        block: index, counted from 0.
        entropy: nats, with the epsilon of the analysis.
        label: its class under EWQ's 4-bit/8-bit mixed variant.
    """

    model: str
    block: int
    num_parameters: int
    num_blocks: int
    exec_index: int
    entropy: float
    label: str

    @property
    def features(self) -> tuple[int, int, int]:
        """In the order of `FEATURES`."""
        return self.num_parameters, self.num_blocks, self.exec_index

    @property
    def quantized(self) -> int:
        """1 where full analysis gives the block 4 or 8 bits."""
        return int(self.label != Precision.RAW.value)

    @property
    def position(self) -> float:
        """Relative depth: 0 for the first block, 1 for the last."""
        return (self.exec_index - 2) / max(1, self.num_blocks - 1)


_HEADER = [f.name for f in fields(Row)]


def label_rows(name: str, model: Model, analysis: Analysis, x: float = 1.0) -> list[Row]:
    """A row per block of an analyzed model.

    Raises:
        PlanError: the model has no transformer blocks.
    """
    features = {f.index: f for f in block_features(model)}
    classes = classify([b.entropy for b in analysis.blocks], x).classes
    return [
        Row(name, b.index, *features[b.index].row, b.entropy, c.value)
        for b, c in zip(analysis.blocks, classes)
    ]


def rows_to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header line, floats in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(asdict(row).values() for row in rows)
    return out.getvalue()


def read_rows(path: Path) -> list[Row]:
    """Rows that `fastewq label` wrote, or more made by hand.

    Raises:
        PlanError: the file cannot be read, a column is missing, or a value is none; its line is named.
    """
    try:
        regular_stat(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read rows from {path}: {error}") from error
    try:
        return _rows(path, csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise PlanError(f"{path} is no CSV: {error}") from error


def _rows(path: Path, reader: csv.DictReader[str]) -> list[Row]:
    lacking = [name for name in _HEADER if name not in (reader.fieldnames or [])]
    if lacking:
        raise PlanError(f"{path} has no column {lacking[0]!r}; its first line must be {','.join(_HEADER)}")
    rows = []
    for number, raw in enumerate(reader, start=2):
        try:
            row = Row(
                raw["model"], int(raw["block"]), int(raw["num_parameters"]), int(raw["num_blocks"]),
                int(raw["exec_index"]), float(raw["entropy"]), Precision(raw["label"]).value,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise PlanError(f"{path}, line {number}: {error}") from error
        if not (row.model and row.num_parameters > 0 and row.num_blocks > 0 and math.isfinite(row.entropy)):
            raise PlanError(
                f"{path}, line {number}: a row needs a model, parameters and blocks above 0, and an entropy"
            )
        rows.append(row)
    if not rows:
        raise PlanError(f"{path} holds no rows; make some with `fastewq label`")
    return rows


def split_rows(
    rows: Sequence[Row], share: float = TRAIN_SHARE, seed: int = SEED
) -> tuple[list[Row], list[Row]]:
    """Rows for training and for testing, both classes in the same proportion (scikit-learn's split).

    Raises:
        PlanError: scikit-learn is not installed, or the rows are too few to be split.
    """
    selection = _sklearn("model_selection")
    try:
        train, test = selection.train_test_split(
            list(rows), train_size=share, random_state=seed, stratify=[r.quantized for r in rows]
        )
    except ValueError as error:
        raise PlanError(f"{len(rows)} rows cannot be split for training and testing: {error}") from error
    return train, test


def train(rows: Sequence[Row], name: str, about: dict[str, Any] | None = None) -> Forest:
    """A forest fitted to all the rows given, always the same for the same rows.

    Raises:
        PlanError: scikit-learn is not installed, or the rows are all of one class.
    """
    classifier = _fit(rows)
    told = {
        "rows": len(rows),
        "quantized_rows": sum(r.quantized for r in rows),
        "models": sorted({r.model for r in rows}),
        "scikit_learn": _sklearn("").__version__,
        "trees": TREES,
        "seed": SEED,
        "importances": dict(zip(FEATURES, map(float, classifier.feature_importances_))),
        **(about or {}),
    }
    return from_sklearn(classifier, name, FEATURES, told)


def accuracy(forest: Forest, rows: Sequence[Row]) -> float:
    """Share of rows that the forest decides as full analysis does."""
    return _share(_decide(forest, rows), rows)


def leave_one_model_out(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Accuracy on models that were not trained on, beside three baselines; None for fewer than two models.

    Returns:
        `models[]` with `forest`, `majority`, `position` and `raw` accuracies, and for each of the four a `mean`
        over models and its standard error `se`: the larger of the error over models (which says little for a
        handful of them) and that of as many independent blocks. Majority: always the class that the other
        models have more often. Position: the cut of relative depth, and the side of it, that divides the other
        models best. Raw: no block is quantized.

    Raises:
        PlanError: scikit-learn is not installed.
    """
    names = sorted({r.model for r in rows})
    if len(names) < 2:
        return None
    entries = []
    for name in names:
        others, held = [r for r in rows if r.model != name], [r for r in rows if r.model == name]
        entries.append(
            {
                "model": name,
                "rows": len(held),
                "forest": _share(_decide(train(others, "left out"), held), held),
                "majority": _share([_majority(others)] * len(held), held),
                "position": _share([_position_rule(others)(r) for r in held], held),
                "raw": _share([0] * len(held), held),
            }
        )
    summary: dict[str, Any] = {"models": entries}
    for kind in RULES:
        summary[kind] = _mean_and_error([float(e[kind]) for e in entries], len(rows))  # type: ignore[arg-type]
    return summary


def _decide(forest: Forest, rows: Sequence[Row]) -> list[int]:
    shares = forest.predict_proba([r.features for r in rows])[:, 1]
    return [int(p > 0.5) for p in shares.tolist()]


def _share(decided: Sequence[int], rows: Sequence[Row]) -> float:
    return sum(d == r.quantized for d, r in zip(decided, rows, strict=True)) / len(rows)


def _majority(rows: Sequence[Row]) -> int:
    return int(2 * sum(r.quantized for r in rows) > len(rows))


def _position_rule(rows: Sequence[Row]) -> Any:
    """The best single cut of relative depth on these rows; the first in order of depth where several tie."""
    places = sorted({r.position for r in rows})
    cuts = [-1.0, *((a + b) / 2 for a, b in pairwise(places))]
    best = max(
        ((cut, above) for cut in cuts for above in (1, 0)),
        key=lambda rule: sum(
            (r.position > rule[0]) * 1 == (r.quantized if rule[1] else 1 - r.quantized) for r in rows
        ),
    )
    cut, above = best
    return lambda row: above if row.position > cut else 1 - above


def _mean_and_error(values: Sequence[float], rows: int) -> dict[str, float]:
    n = len(values)
    mean = math.fsum(values) / n
    over_models = math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n
    return {"mean": mean, "se": math.sqrt(max(over_models, mean * (1 - mean) / rows))}


def _fit(rows: Sequence[Row]) -> Any:
    ensemble = _sklearn("ensemble")
    classifier = ensemble.RandomForestClassifier(n_estimators=TREES, random_state=SEED)
    return classifier.fit([r.features for r in rows], [r.quantized for r in rows])


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}" if module else "sklearn")
    except ImportError as error:
        raise PlanError(
            "training needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
