"""From what clients saw to what is published, and whether the rules were kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hawkeye_bench.clients import Tally
from hawkeye_bench.report import percentile

GROWTH = 0.05
"""Share by which the resident memory may grow from the second third of the time to the last one."""

HEALTH_MS = 1000.0
"""Longest time of one /health; a kubelet's probes wait that long by default."""


def rss_mib(process: int) -> float:
    """Resident memory, MiB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return math.nan


@dataclass
class Seen:
    """What a run showed."""

    seconds: float
    kinds: dict[str, Tally] = field(default_factory=dict)
    rss: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, MiB."""
    health: list[float] = field(default_factory=list)
    """Milliseconds of each /health."""
    waiting: int = 0
    """Clients that were never answered."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The service's own counts once no client is left."""
    exit_code: int | None = None

    @property
    def total(self) -> Tally:
        return Tally.of(list(self.kinds.values()))

    def third(self, number: int) -> float:
        """The median of the resident memory in a third of the time, counted from 0; the first one is the warm-up."""
        low, high = number * self.seconds / 3, (number + 1) * self.seconds / 3
        values = [value for at, value in self.rss if low <= at < high]
        return median(values) if values else math.nan

    def document(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "kinds": {kind: _figures(tally) for kind, tally in self.kinds.items()},
            "answers_per_s": round(self.total.answered / self.seconds, 2),
            "rss_mib": {
                "warm_up": round(self.third(0)), "middle": round(self.third(1)), "last": round(self.third(2)),
                "peak": round(max((value for _, value in self.rss), default=0)),
            },
            "health_ms": {"median": round(median(self.health), 2), "p99": round(percentile(self.health, 0.99), 2)},
            "metrics": self.metrics,
        }  # fmt: skip


@dataclass(frozen=True)
class Rule:
    text: str
    held: bool
    found: str


def judge(seen: Seen) -> list[Rule]:
    """Every rule of a soak."""
    total = seen.total
    asked = total.sent - total.hung_up
    outcomes = {name: seen.metrics.get(f'hawkeye_parse_requests_total{{outcome="{name}"}}', 0) for name in ("Parsed", "ClientLeft")}
    # Of those that hang up some are parsed already.
    unheard = outcomes["Parsed"] - total.answered
    questions = {(number, ocr) for number, ocr, _ in total.answers}
    growth = seen.third(2) / seen.third(1) - 1
    errors = sum(total.errors.values())
    texts = "; ".join(f"{count} × {text}" for text, count in total.errors.most_common(3))
    slowest = max(seen.health, default=math.inf)
    return [
        Rule("no answer but 200 and 429", errors == 0, f"{errors} others" + (f": {texts}" if texts else "")),
        Rule(
            "every request is answered, unless its client hung up",
            seen.waiting == 0 and asked == total.answered + total.refused + errors,
            f"{asked} asked, {total.answered} parsed, {total.refused} refused, {seen.waiting} clients still wait",
        ),
        Rule(
            "the service's own counts agree, and it holds nothing in the end",
            0 <= unheard <= total.hung_up and seen.metrics.get("hawkeye_parse_requests_held") == 0,
            f"parsed {outcomes['Parsed']:.0f}, {outcomes['ClientLeft']:.0f} left, {seen.metrics.get('hawkeye_parse_requests_held')} held",
        ),
        Rule(
            "a screenshot has the same elements each time",
            0 < len(questions) == len(total.answers),
            f"{len(total.answers)} different answers to {len(questions)} screenshots, those with text and without counted apart",
        ),
        Rule(
            f"resident memory: the last third's median is at most {GROWTH:.0%} above that of the second third",
            growth <= GROWTH,
            f"{seen.third(1):.0f} → {seen.third(2):.0f} MiB ({growth:+.1%})",
        ),
        Rule(f"/health within {HEALTH_MS:.0f} ms, always", slowest <= HEALTH_MS, f"{slowest:.1f} ms"),
        Rule("SIGTERM ends it with 0", seen.exit_code == 0, f"exit code {seen.exit_code}"),
    ]


def _figures(tally: Tally) -> dict[str, Any]:
    times = tally.milliseconds
    return {
        "sent": tally.sent, "answered": tally.answered, "refused": tally.refused, "hung_up": tally.hung_up, "errors": dict(tally.errors),
        "median_ms": round(median(times)) if times else None, "p99_ms": round(percentile(times, 0.99)) if times else None,
    }  # fmt: skip


def table(seen: Seen, rules: list[Rule]) -> str:
    """Markdown."""
    lines = ["| clients | sent | answered | refused (429) | hung up | other | median ms | p99 ms |", "| --- " * 8 + "|"]
    for kind, tally in [*seen.kinds.items(), ("all", seen.total)]:
        figures = _figures(tally)
        times = [figures["median_ms"], figures["p99_ms"]]
        cells = [tally.sent, tally.answered, tally.refused, tally.hung_up, sum(tally.errors.values()), *times]
        lines.append(f"| {kind} | " + " | ".join("" if cell is None else f"{cell:,}" for cell in cells) + " |")
    about = seen.document()
    rss, probe = about["rss_mib"], about["health_ms"]
    lines += [
        "",
        f"{about['answers_per_s']} answers a second; resident memory {rss['warm_up']}, {rss['middle']}, {rss['last']} MiB in each third, "
        f"peak {rss['peak']}; /health median {probe['median']} ms, p99 {probe['p99']} ms",
        "",
        *(f"{'ok  ' if rule.held else 'FAIL'} {rule.text}: {rule.found}" for rule in rules),
    ]
    return "\n".join(lines)
