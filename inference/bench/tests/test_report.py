"""The figures from known times, and the pictures that are timed."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image

from hawkeye_bench.report import Row, Times, document, percentile, summed_up, table
from hawkeye_bench.screens import SCREENS, SIZE

FIELDS = [
    "name", "device", "dtype", "median_ms", "p99_ms", "reference_median_ms", "ratio", "reference_as_shipped_ratio", "throughput_per_s",
    "stages_ms",
]  # fmt: skip


def test_a_row_says_how_many_times_as_fast() -> None:
    stages = [{"detect": 4.0}, {"detect": 6.0, "caption": 9.0}, {"detect": 5.0, "caption": 9.0}]
    row = summed_up("a", "cpu", "float32", Times(ours=[10, 30, 20], reference=[80, 70, 90], as_shipped=[500], stages=stages))
    expected = Row("a", "cpu", "float32", 20, 30, 80, 4.0, 25.0, 50.0, {"caption": 9.0, "detect": 5.0})
    assert row == expected
    assert list(document([row], {"commit": "x"})["scenarios"][0]) == FIELDS
    json.dumps(document([row], {}))
    assert "| a | cpu | float32 | 20.00 | 30.00 | 80.00 | 4.00 | 25.00 | 50.00 | caption 9.0, detect 5.0 |" in table([row])


def test_with_many_clients_the_ratio_is_that_of_answers_a_second() -> None:
    row = summed_up("b", "cuda", "float16", Times(ours=[320.0] * 100, reference=[200.0], throughput=100.0))
    assert (row.median_ms, row.ratio, row.throughput_per_s) == (320.0, 20.0, 100.0)


def test_what_was_not_measured_is_empty() -> None:
    row = summed_up("c", "cpu", "float32", Times(ours=[5.0]))
    assert (row.reference_median_ms, row.ratio, row.reference_as_shipped_ratio) == (None, None, None)


@pytest.mark.parametrize(("count", "place"), [(1, 0), (100, 98), (101, 99), (1000, 989)])
def test_percentile(count: int, place: int) -> None:
    assert percentile(list(range(count)), 0.99) == place


@pytest.mark.parametrize("name", SCREENS)
def test_screens_are_the_same_each_time(name: str) -> None:
    first, second = SCREENS[name](), SCREENS[name]()
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    image = Image.open(io.BytesIO(first))
    assert image.size == SIZE
    colours = image.getcolors(SIZE[0] * SIZE[1])
    assert colours is not None and len(colours) > 50
