"""One bundle for the whole run: exporting it is the slow part, and most tests look at the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTDATA = Path(__file__).resolve().parent.parent / "testdata"
SCREENS = TESTDATA / "screens"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made from the published weights by this checkout's code."""
    from hawkeye_export.bundle import write_bundle
    from hawkeye_export.sources import OMNIPARSER_V2

    out = tmp_path_factory.mktemp("bundles") / "demo"
    assert write_bundle(out, OMNIPARSER_V2)
    return out


@pytest.fixture(scope="session")
def module(bundle: Path):
    """Loads a model of the bundle by role, as the service does."""
    import json

    import torch

    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    models = {model["role"]: model for model in manifest["models"]}
    return lambda role: torch.jit.load(str(bundle / models[role]["files"][0]["path"]))
