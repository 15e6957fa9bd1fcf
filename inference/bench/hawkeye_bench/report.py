"""From single times to the figures that are published."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass
class Times:
    """What was measured in one scenario, in milliseconds."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    """Captions from crops of 64×64 pixels, as ours."""
    as_shipped: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    throughput: float | None = None
    """Answers a second, where that was measured by itself; else it follows from `ours`."""


@dataclass(frozen=True)
class Row:
    """One scenario as it is published. A ratio says how many times as fast as the reference we are."""

    name: str
    device: str
    dtype: str
    """Number format of ours."""
    median_ms: float
    p99_ms: float
    reference_median_ms: float | None
    ratio: float | None
    reference_as_shipped_ratio: float | None
    throughput_per_s: float
    stages_ms: dict[str, float]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summed_up(name: str, device: str, dtype: str, times: Times) -> Row:
    """The row of a scenario with at least one time of ours."""
    ours = median(times.ours)
    reference = median(times.reference) if times.reference else None
    names = {stage for stages in times.stages for stage in stages}
    stages = {stage: round(median([row.get(stage, 0.0) for row in times.stages]), 2) for stage in sorted(names)}
    throughput = times.throughput or 1e3 * len(times.ours) / sum(times.ours)
    # Answers a second, where clients overlap: an answer's own time then holds the wait for others.
    speed = 1e3 / throughput if times.throughput else ours
    return Row(
        name=name,
        device=device,
        dtype=dtype,
        median_ms=round(ours, 2),
        p99_ms=round(percentile(times.ours, 0.99), 2),
        reference_median_ms=None if reference is None else round(reference, 2),
        ratio=None if reference is None else round(reference / speed, 2),
        reference_as_shipped_ratio=round(median(times.as_shipped) / speed, 2) if times.as_shipped else None,
        throughput_per_s=round(throughput, 2),
        stages_ms=stages,
    )


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ["scenario", "device", "format", "median ms", "p99 ms", "reference ms", "ratio", "as shipped", "per second", "stages ms"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in row.stages_ms.items() if value)
        lines.append([row.name, row.device, row.dtype, *map(_cell, _figures(row)), stages])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(row: Row) -> list[float | None]:
    ratios = [row.ratio, row.reference_as_shipped_ratio]
    return [row.median_ms, row.p99_ms, row.reference_median_ms, *ratios, row.throughput_per_s]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def document(rows: list[Row], about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "scenarios": [asdict(row) for row in rows]}
