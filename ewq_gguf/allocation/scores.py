"""One table of bytes and damage for every tensor and type, whatever the damage is made of.

Damage models:

- `mse`: relative squared error per tensor, no data needed (the linearity theorem with equal alphas,
  arXiv 2411.17525).
- `imatrix`: error weighted by the importance matrix, all outputs taken as equally important.
- `probe`: that error times what one measured divergence per tensor says a unit of it costs (CVXQ's G^2 S^2,
  HIGGS' alpha): in nats per token.
- `direct`: divergences measured for every tensor and type; between types that were measured, as `probe`.

A table serves any number of targets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ewq_gguf.allocation.distortion import Distortion, TensorDistortion, choosable
from ewq_gguf.allocation.facts import fallback_type
from ewq_gguf.allocation.plan import raw_type
from ewq_gguf.allocation.solver import Item, Option, Solution, solve, solve_for_damage
from ewq_gguf.calibration.probe import Probe
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model, block_of

DamageModel = Literal["mse", "imatrix", "probe", "direct"]
DAMAGE_MODELS: tuple[DamageModel, ...] = ("mse", "imatrix", "probe", "direct")
UNITS: Mapping[DamageModel, str] = {
    "mse": "relative squared error, summed over tensors",
    "imatrix": "importance-weighted squared error, summed over tensors",
    "probe": "nats per token",
    "direct": "nats per token",
}
_ALIGNMENT = 32
_BLOCK = re.compile(r"^blk\.\d+\.")


@dataclass(frozen=True)
class Allocation:
    """Types for all tensors of the table, and how good the choice is known to be."""

    types: Mapping[str, GGMLType]
    solution: Solution = field(repr=False)
    data_bytes: int
    damage: float


@dataclass(frozen=True)
class ScoreTable:
    """Bytes and damage per tensor and type.

    Attributes:
        damage_model, unit: what the damages are.
        options: by tensor name, in the order of the file; bytes include the padding in the file.
        row_lengths: by tensor name; types that a row does not fit stand for their fallbacks.
        fixed_bytes: data bytes of the tensors that are no choice, padding included.
        level: what sums of damages are multiplied by, so that predictions hold for the text at large (see
            `pipeline.levels`); which types are chosen for a size does not depend on it.
        floor: damage that every choice has besides: llama.cpp rounds activations to 8 bits before they meet
            quantized weights of whatever type.
    """

    damage_model: DamageModel
    unit: str
    options: Mapping[str, Mapping[GGMLType, Option]]
    row_lengths: Mapping[str, int]
    fixed_bytes: int
    level: float = 1.0
    floor: float = 0.0

    def items(
        self,
        *,
        pool: Sequence[GGMLType] | None = None,
        pins: Mapping[str, GGMLType] | None = None,
        groups: Sequence[Sequence[str]] = (),
    ) -> list[Item]:
        """What the solver gets; an item's name lists its tensors, separated by blanks.

        Args:
            pool: types allowed (pins are exempt); None for all in the table.
            pins: tensors with a given type, which must be in the table.
            groups: tensors that must share a type.

        Raises:
            PlanError: an unknown tensor, a tensor in two groups, or no type left.
        """
        pins = pins or {}
        for name in [*pins, *(name for group in groups for name in group)]:
            if name not in self.options:
                raise PlanError(f"{name} is no tensor whose type can be chosen; `inspect` lists them")
        partner: dict[str, tuple[str, ...]] = {}
        for group in groups:
            for name in group:
                if name in partner:
                    raise PlanError(f"{name} stands in two groups of tensors that share a type; join them")
                partner[name] = tuple(group)
        items: list[Item] = []
        seen: set[str] = set()
        for name in self.options:
            members = partner.get(name, (name,))
            if members[0] in seen:
                continue
            seen.update(members)
            items.append(self._item(members, pool, pins))
        return items

    def _item(
        self, members: tuple[str, ...], pool: Sequence[GGMLType] | None, pins: Mapping[str, GGMLType]
    ) -> Item:
        kinds = list(self.options[members[0]])
        length = self.row_lengths[members[0]]
        if pool is not None:
            allowed = {fallback_type(kind, length) for kind in pool}
            kinds = [kind for kind in kinds if kind in allowed]
        # Compared with None throughout: F32 is type number 0.
        wanted = {_fitted(pins[name], length) for name in members if name in pins}
        if wanted:
            kinds = list(wanted)
        if len(kinds) > 1 and wanted:
            raise PlanError(f"{' and '.join(members)} must share a type but are pinned to different ones")
        shared = [kind for kind in kinds if all(kind in self.options[name] for name in members)]
        if not shared:
            asked = ", ".join(kind.name for kind in kinds or pool or ())
            raise PlanError(
                f"{' and '.join(members)} cannot take {asked or 'any type'}: the score table has no such "
                f"entry; widen the type pool"
            )
        found = []
        for kind in shared:
            parts = [self.options[name][kind] for name in members]
            damage = math.fsum(part.damage for part in parts)
            found.append(Option(kind.name, sum(part.bytes for part in parts), damage))
        return Item(" ".join(members), tuple(found))

    def allocate(
        self,
        data_bytes: int,
        *,
        pool: Sequence[GGMLType] | None = None,
        pins: Mapping[str, GGMLType] | None = None,
        groups: Sequence[Sequence[str]] = (),
    ) -> Allocation:
        """Least damage in at most `data_bytes` bytes of tensor data, those of fixed tensors included.

        Raises:
            PlanError: the size is out of reach, or the constraints leave a tensor without a type.
        """
        items = self.items(pool=pool, pins=pins, groups=groups)
        solution = solve(items, data_bytes - self.fixed_bytes)
        return self._finish(items, solution, self.level * solution.damage)

    def allocate_for_damage(
        self,
        max_damage: float,
        *,
        pool: Sequence[GGMLType] | None = None,
        pins: Mapping[str, GGMLType] | None = None,
        groups: Sequence[Sequence[str]] = (),
    ) -> Allocation:
        """Fewest bytes with a damage of at most `max_damage`.

        Raises:
            PlanError: the damage is out of reach, or the constraints leave a tensor without a type.
        """
        items = self.items(pool=pool, pins=pins, groups=groups)
        if max_damage <= self.floor:
            raise PlanError(
                f"a damage of {max_damage:g} {self.unit} is out of reach: quantized weights of any type cost "
                f"{self.floor:.2g} by their 8-bit activations alone; ask for more, or convert with --type bf16"
            )
        leveled = [
            replace(item, options=tuple(replace(o, damage=self.level * o.damage) for o in item.options))
            for item in items
        ]
        least = math.fsum(min(option.damage for option in item.options) for item in leveled)
        if max_damage - self.floor < least:
            raise PlanError(
                f"a damage of {max_damage:g} {self.unit} is out of reach: with the most precise of the types allowed it "
                f"is {least + self.floor:.2g}; ask for more, allow more precise types, or convert with --type bf16"
            )
        solution = solve_for_damage(leveled, max_damage - self.floor)
        return self._finish(leveled, solution, solution.damage)

    def _finish(self, items: Sequence[Item], solution: Solution, damage: float) -> Allocation:
        types = {
            name: GGMLType[item.options[index].type]
            for item, index in zip(items, solution.choice)
            for name in item.name.split(" ")
        }
        ordered = {name: types[name] for name in self.options}
        return Allocation(ordered, solution, solution.bytes + self.fixed_bytes, damage + self.floor)

    def predict(self, types: Mapping[str, GGMLType]) -> tuple[int, float]:
        """Data bytes and damage of any choice of types, a stock preset's for instance.

        Raises:
            PlanError: a tensor is missing, or its type is not in the table.
        """
        found = []
        for name, options in self.options.items():
            kind = types.get(name)
            if kind is None or kind not in options:
                raise PlanError(
                    f"the score table has no damage for {name} as {'no type' if kind is None else kind.name}; "
                    f"add the type to the pool"
                )
            found.append(options[kind])
        damage = self.level * math.fsum(option.damage for option in found)
        return sum(option.bytes for option in found) + self.fixed_bytes, damage + self.floor


def score_table(
    model: Model,
    distortions: Mapping[str, TensorDistortion],
    damage_model: DamageModel,
    probes: Sequence[Probe] = (),
) -> ScoreTable:
    """Put bytes and damages together.

    Args:
        distortions: from `measure_distortions`, for this model.
        probes: measured divergences, for `probe` and `direct`. Tensors of a block that was not probed take
            the mean of their role's neighbours in depth.

    Raises:
        PlanError: a tensor has no distortion, or no probe of its role.
    """
    by_name: dict[str, list[Probe]] = {}
    for probe in probes:
        by_name.setdefault(probe.tensor, []).append(probe)
    costs = {name: _curve(distortions[name], found) for name, found in by_name.items() if name in distortions}
    options: dict[str, dict[GGMLType, Option]] = {}
    for tensor in choosable(model):
        known = distortions.get(tensor.name)
        if known is None:
            raise PlanError(f"{tensor.name} was not measured; measure the distortions of this model first")
        curve = None
        if damage_model in ("probe", "direct"):
            curve = costs.get(tensor.name) or _neighbours(tensor.name, costs)
        row = {}
        for kind, distortion in known.types.items():
            damage = _damage(damage_model, known, distortion, curve)
            row[kind] = Option(kind.name, _padded(tensor.bytes_as(kind)), damage)
        options[tensor.name] = dict(sorted(row.items(), key=lambda entry: (entry[1].bytes, entry[0])))
    raw = raw_type(model)
    fixed = sum(
        _padded(t.bytes_as(raw if t.fixed is None else t.fixed))
        for t in model.tensors
        if t.name not in options
    )
    lengths = {t.name: t.row_length for t in model.tensors if t.name in options}
    return ScoreTable(damage_model, UNITS[damage_model], options, lengths, fixed)


@dataclass(frozen=True)
class _Curve:
    """Log of the cost of a unit of weighted error, at the logs of the errors where it was measured."""

    at: tuple[float, ...]
    cost: tuple[float, ...]

    def damage(self, error: float) -> float:
        if error <= 0:
            return 0.0
        return error * math.exp(float(np.interp(math.log(error), self.at, self.cost)))


def _curve(known: TensorDistortion, probes: Sequence[Probe]) -> _Curve:
    points: dict[float, list[float]] = {}
    for probe in probes:
        distortion = known.types.get(GGMLType[probe.type])
        if distortion is None:
            raise PlanError(
                f"{known.name} was probed as {probe.type}, which the distortions lack; measure them too"
            )
        error = distortion.weighted * probe.scale**2
        divergence = max(probe.kld - probe.noise, 1e-3 * probe.kld, 1e-12)
        # What does not stand clear of noise would bend the curve; a tensor's clearest probe always counts.
        if error > 0 and (probe.clear or probe is max(probes, key=lambda p: p.kld)):
            points.setdefault(math.log(error), []).append(math.log(divergence / error))
    if not points:
        return _Curve((0.0,), (-math.inf,))
    at = tuple(sorted(points))
    return _Curve(at, tuple(sum(points[x]) / len(points[x]) for x in at))


def _neighbours(name: str, costs: Mapping[str, _Curve]) -> _Curve:
    """The cost for a tensor whose block was not probed: between its role's nearest probed blocks."""
    role, depth = _BLOCK.sub("", name), block_of(name)
    same = sorted(
        (block, float(np.mean(costs[other].cost)))
        for other in costs
        if depth is not None and (block := block_of(other)) is not None and _BLOCK.sub("", other) == role
    )
    if not same or depth is None:
        raise PlanError(f"neither {name} nor another tensor of its role was probed; probe it")
    value = float(np.interp(depth, [block for block, _ in same], [cost for _, cost in same]))
    return _Curve((0.0,), (value,))


def _damage(
    model: DamageModel, known: TensorDistortion, distortion: Distortion, curve: _Curve | None
) -> float:
    if curve is not None:
        return curve.damage(distortion.weighted)
    if model == "imatrix":
        return distortion.weighted
    return distortion.plain / known.energy if known.energy > 0 else 0.0


def _fitted(kind: GGMLType, row_length: int) -> GGMLType:
    stand_in = fallback_type(kind, row_length)
    return kind if stand_in is None else stand_in


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
