"""The committed screenshots and the oracle that describes them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from conftest import SCREENS, TESTDATA
from hawkeye_export.errors import ExportError
from hawkeye_export.reference import Reference, to_json
from hawkeye_export.sources import OMNIPARSER_V2

PAGES = sorted(page.stem for page in (TESTDATA / "pages").glob("*.html"))


@pytest.fixture(scope="module")
def reference(bundle: Path) -> Reference:
    """`bundle` first: it fetches the weights."""
    return Reference(OMNIPARSER_V2)


def committed(name: str) -> dict:
    return json.loads((SCREENS / f"{name}.reference.json").read_text(encoding="utf-8"))


def test_there_are_enough_pages() -> None:
    assert len(PAGES) >= 7 and {"demo", "blank"} <= set(PAGES)
    assert {path.stem for path in SCREENS.glob("*.png")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_screens_and_references_belong_together(name: str) -> None:
    data = (SCREENS / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    page = (TESTDATA / "pages" / f"{name}.html").read_text(encoding="utf-8")
    assert f'content="{width}x{height}"' in page
    assert len(data) <= 200_000
    document = committed(name)
    assert (document["image"], document["width"], document["height"]) == (f"{name}.png", width, height)
    assert bool(document["detector"]) == bool(document["text"]) == (name != "blank")
    for item in document["detector"]:
        x1, y1, x2, y2 = item["bbox"]
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and 0.05 < item["score"] <= 1
    for item in document["text"]:
        assert len(item["quad"]) == 4 and item["text"].strip() and 0.5 <= item["score"] <= 1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("demo", ["Compose", "Berth plan for the spring season", "Invoice 2047 is due on Friday", "Reply", "Accept"]),
        ("login", ["Welcome back", "nils.karlsen@example.com", "Sign in", "Forgot password?"]),
        ("files", ["agenda.txt", "lighthouse.jpg", "Terminal"]),
        ("settings", ["Wireless network", "Restore defaults", "Apply"]),
        ("table", ["Engineering", "145,250", "fx =SUM(F3:F16)"]),
        ("dialog", ["Do not ask again", "Cancel"]),
        ("dashboard", ["Fleet overview", "Engine temperature high", "Gothenburg depot"]),
    ],
)
def test_the_oracle_read_what_the_page_says(name: str, texts: list[str]) -> None:
    found = {item["text"].strip() for item in committed(name)["text"]}
    assert set(texts) <= found


def test_reading_twice_gives_the_same(reference: Reference) -> None:
    path = SCREENS / "dialog.png"
    first = reference.read(path)
    assert to_json(first) == to_json(reference.read(path))
    expected = committed("dialog")
    assert [item["text"] for item in first["text"]] == [item["text"] for item in expected["text"]]
    assert len(first["detector"]) == len(expected["detector"])
    for found, want in zip(first["detector"], expected["detector"], strict=True):
        # Another processor's kernels round differently; on one machine the numbers are the same to the last digit.
        assert found["bbox"] == pytest.approx(want["bbox"], abs=0.5)


def test_blank_has_nothing(reference: Reference) -> None:
    document = reference.read(SCREENS / "blank.png")
    assert document["detector"] == [] and document["text"] == []


def test_not_an_image(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "not.png"
    path.write_text("no image", encoding="utf-8")
    with pytest.raises(ExportError, match="not an image"):
        reference.read(path)
