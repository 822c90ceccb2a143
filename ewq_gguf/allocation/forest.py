"""A random forest as plain arrays: read, checked and evaluated with numpy alone.

Evaluation follows scikit-learn's: inputs are rounded to float32, a node sends a row left where the feature is
at most the threshold, a leaf yields its class shares, and the trees' shares are added in order and divided by
their number. In the same order of additions the result is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import CheckpointError, PlanError

FORMAT = "ewq-gguf forest"
VERSION = 1
LEAF = -1

F64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """Nodes as parallel arrays, node 0 the root, children after their parent; a leaf has `left` LEAF.

    Attributes:
        feature: int64 (nodes,), column that is looked at; 0 in a leaf.
        threshold: float64 (nodes,).
        left, right: int64 (nodes,), children.
        value: float64 (nodes, classes), shares of the classes; zeros in inner nodes.
    """

    feature: npt.NDArray[np.int64]
    threshold: F64Array
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: F64Array

    def predict(self, rows: npt.NDArray[np.float32]) -> F64Array:
        """Class shares of the leaf that each row of (n, features) reaches, (n, classes)."""
        at = np.zeros(len(rows), dtype=np.int64)
        inner = self.left[at] != LEAF
        while inner.any():
            nodes = at[inner]
            low = rows[inner, self.feature[nodes]] <= self.threshold[nodes]
            at[inner] = np.where(low, self.left[nodes], self.right[nodes])
            inner = self.left[at] != LEAF
        shares: F64Array = self.value[at]
        return shares


@dataclass(frozen=True)
class Forest:
    """A classifier and where it comes from.

    Attributes:
        name: "fast", "fast-train", or whatever its maker called it.
        features: names of the columns.
        trees: summed in this order.
        about: training data, settings and measured accuracy, as JSON.
    """

    name: str
    features: tuple[str, ...]
    trees: tuple[Tree, ...] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def predict_proba(self, rows: Sequence[Sequence[float]] | F64Array) -> F64Array:
        """Probabilities of the classes (not quantized, quantized) for (n, features) rows: float64 (n, 2)."""
        table = np.asarray(rows, dtype=np.float32).reshape(-1, len(self.features))
        total = np.zeros((len(table), 2))
        for tree in self.trees:
            total += tree.predict(table)
        total /= len(self.trees)
        return total

    @property
    def digest(self) -> str:
        """sha256 of features and trees in their JSON form."""
        return _digest(list(self.features), [_tree_json(t) for t in self.trees])

    def to_json(self) -> str:
        """The forest as text, one tree a line, thresholds in full precision."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "digest": self.digest,
            "features": list(self.features),
            "about": dict(self.about),
        }
        lines = [json.dumps(_tree_json(t), separators=(",", ":")) for t in self.trees]
        return json.dumps(head, indent=1)[:-2] + ',\n "trees": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def _tree_json(tree: Tree) -> dict[str, Any]:
    leaves = tree.left == LEAF
    return {
        "feature": tree.feature.tolist(),
        "threshold": tree.threshold.tolist(),
        "left": tree.left.tolist(),
        "right": tree.right.tolist(),
        # Leaves only, in the order of nodes.
        "leaves": tree.value[leaves].tolist(),
    }


def _digest(features: list[str], trees: list[dict[str, Any]]) -> str:
    text = json.dumps({"features": features, "trees": trees}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_forest(path: Path) -> Forest:
    """Read a forest file; every index in it is checked before it is used.

    Raises:
        PlanError: not such a file, damaged, or its digest does not match.
    """
    try:
        data = load_json_object(path)
    except CheckpointError as error:
        raise PlanError(str(error)) from error
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise PlanError(
            f"{path} is not a version {VERSION} classifier; make one with `fastewq train`, or name fast or fast-train"
        )
    features, trees, about = data.get("features"), data.get("trees"), data.get("about", {})
    if (
        not isinstance(features, list)
        or not features
        or not all(isinstance(f, str) for f in features)
        or not isinstance(trees, list)
        or not trees
        or not isinstance(about, dict)
    ):
        raise PlanError(f"{path} has no list of features or no trees")
    forest = Forest(
        str(data.get("name", path.stem)),
        tuple(features),
        tuple(_tree(t, len(features), f"{path}, tree {i}") for i, t in enumerate(trees)),
        about,
    )
    if forest.digest != data.get("digest"):
        raise PlanError(f"{path} does not match its digest; train or install it again")
    return forest


def _tree(data: Any, n_features: int, where: str) -> Tree:
    try:
        feature = np.array(data["feature"], dtype=np.int64)
        threshold = np.array(data["threshold"], dtype=np.float64)
        left = np.array(data["left"], dtype=np.int64)
        right = np.array(data["right"], dtype=np.int64)
        leaves = np.array(data["leaves"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PlanError(f"{where} is damaged: {error}") from error
    n = len(feature) if feature.ndim == 1 else 0
    inner = left != LEAF
    nodes = np.arange(n)
    sound = (
        n > 0
        and all(a.shape == (n,) for a in (threshold, left, right))
        and leaves.shape == (int((~inner).sum()), 2)
        and bool(np.isfinite(threshold).all() and np.isfinite(leaves).all())
        and bool(((feature >= 0) & (feature < n_features)).all())
        # Children lie behind their parent, so that walking down ends.
        and bool(((left[inner] > nodes[inner]) & (left[inner] < n)).all())
        and bool(((right[inner] > nodes[inner]) & (right[inner] < n)).all())
    )
    if not sound:
        raise PlanError(f"{where} is damaged: its nodes do not form a tree")
    value = np.zeros((n, 2))
    value[~inner] = leaves
    return Tree(feature, threshold, left, right, value)


def from_sklearn(classifier: Any, name: str, features: Sequence[str], about: Mapping[str, Any]) -> Forest:
    """The arrays of a fitted scikit-learn RandomForestClassifier with the classes 0 and 1.

    Raises:
        PlanError: it was trained on one class only.
    """
    if list(classifier.classes_) != [0, 1]:
        raise PlanError("the rows are all of one class; label more models before training")
    trees = []
    for estimator in classifier.estimators_:
        raw = estimator.tree_
        leaf = raw.children_left == LEAF
        shares = np.where(leaf[:, None], raw.value[:, 0, :], 0.0)
        trees.append(
            Tree(
                np.where(leaf, 0, raw.feature).astype(np.int64),
                np.where(leaf, 0.0, raw.threshold),
                raw.children_left.astype(np.int64),
                np.where(leaf, LEAF, raw.children_right).astype(np.int64),
                shares,
            )
        )
    if not all(math.isfinite(t.value.sum()) for t in trees):
        raise PlanError("the classifier holds values that are no numbers")
    return Forest(name, tuple(features), tuple(trees), about)
