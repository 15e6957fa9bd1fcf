"""Writes, reads and checks a bundle folder: TorchScript files, `bundle.json`, `characters.txt`, `tokenizer.json`, `LICENSES.md`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawkeye_export import __version__
from hawkeye_export.errors import ExportError
from hawkeye_export.progress import say
from hawkeye_export.sources import (
    DETECTOR,
    OCR_DETECTOR,
    OCR_RECOGNIZER,
    OMNIPARSER_V2,
    Source,
    detector_bytes,
    sha256_of_file,
    verified_bytes,
)

if TYPE_CHECKING:
    from hawkeye_export.captioner import Request

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
CREATED_BY = f"hawkeye-export {__version__}"

# rapidocr's defaults (its config.yaml). One normalisation for both OCR networks: (v / 255 - mean) / std.
OCR_NORMALISATION = {"channelOrder": "BGR", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
OCR_DETECTOR_LIMITS = {
    # The image is first shrunk until its longer side is at most maxSideLen, then grown until its shorter side is at
    # least limitSideLen; both sides are rounded to the nearest multiple of the stride.
    "limits": {"limitType": "min", "limitSideLen": 736, "minSideLen": 30, "maxSideLen": 2000},
    "postprocess": {
        "threshold": 0.3,
        "boxThreshold": 0.5,
        "unclipRatio": 1.6,
        "maxCandidates": 1000,
        "minSize": 3,
        "useDilation": True,
        "scoreMode": "fast",
    },
}
OCR_RECOGNIZER_LIMITS = {"minWidth": 320, "batchSize": 6, "textScore": 0.5}


def exporter_digest() -> str:
    """sha256 over this package's code, so that a bundle made by older code is not taken for a current one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Exact versions of everything that shapes a bundle or a reference."""
    names = ("torch", "torchvision", "ultralytics", "rapidocr", "onnx", "onnxruntime", "opencv-python-headless", "numpy")
    names += ("tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _listed_files(model: dict[str, Any]) -> list[dict[str, str]]:
    """Every file of a model with its sha256."""
    single = [model[key] for key in ("characters", "tokenizer") if key in model]
    return [*model["files"], *single, *model.get("reference", [])]


def check_bundle(folder: Path) -> dict[str, Any]:
    """The manifest, once every file it lists is there with the sha256 it gives. Raises ExportError otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["formatVersion"] != FORMAT_VERSION:
            raise ExportError(f"{folder}: format version {manifest['formatVersion']}, not {FORMAT_VERSION}")
        entries = [entry for model in manifest["models"] for entry in _listed_files(model)]
        wanted = [(str(entry["path"]), str(entry["sha256"])) for entry in entries]
    except OSError as error:
        raise ExportError(f"{folder} holds no readable {MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}/{MANIFEST} is not a bundle manifest: {error!r}") from error
    for name, sha256 in wanted:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ExportError(f"{folder}: {name} is missing")
        if sha256_of_file(path) != sha256:
            raise ExportError(f"{folder}: {name} does not have the sha256 that {MANIFEST} gives")
    return manifest


def _is_of_this_exporter(manifest: dict[str, Any]) -> bool:
    made = tuple(manifest.get(key) for key in ("createdBy", "exporter", "versions"))
    hashes = [model.get("source", {}).get("sha256") for model in manifest["models"] if model.get("role") != "captioner"]
    return made == (CREATED_BY, exporter_digest(), versions()) and hashes == [
        DETECTOR.sha256,
        OCR_DETECTOR.sha256,
        OCR_RECOGNIZER.sha256,
    ]


def _is_current(folder: Path, name: str, caption: Request | None) -> bool:
    """Whether the folder already holds what this call would write."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = check_bundle(folder)
    except ExportError as error:
        say(f"the bundle that is there is not valid and will be written anew: {error}")
        return False
    captioners = [model for model in manifest["models"] if model.get("role") == "captioner"]
    if not captioners or caption is None:
        same = not captioners and caption is None
    else:
        from hawkeye_export.captioner import identity_of

        same = identity_of(captioners[0]) == caption.identity()
    return same and manifest.get("name") == name and _is_of_this_exporter(manifest)


def _write_licences(folder: Path, caption: Request | None) -> None:
    named = [("Icon detector", DETECTOR), ("Text detector", OCR_DETECTOR), ("Text recogniser", OCR_RECOGNIZER)]
    rows = [f"| {title} | `{s.path}` of {s.requirement} | `{s.sha256}` | {s.licence} |" for title, s in named]
    notes = [f"- {title}: {source.licence_note}" for title, source in named]
    if caption is not None:
        from hawkeye_export.captioner import licence_note, licence_row

        title, sha256, licence = licence_row(caption.origin)
        rows.append(f"| Captioner | {title} | `{sha256}` | {licence} |")
        notes.append(f"- Captioner: {licence_note(caption.origin)}")
    head = ["# Licences of the models in this bundle", "", "| model | source | sha256 of the source | licence |", "|---|---|---|---|"]
    (folder / "LICENSES.md").write_text("\n".join([*head, *rows, "", *notes, ""]), encoding="utf-8")


def print_licences() -> None:
    """Tells the user what they are about to hold."""
    for title, source in (("icon detector", DETECTOR), ("text detector", OCR_DETECTOR), ("text recogniser", OCR_RECOGNIZER)):
        say(f"licence of the {title}: {source.licence}")
    say(f"NOTICE: {DETECTOR.licence_note}")


def _model(role: str, name: str, architecture: str, source: Source, origin: dict[str, str], **rest: Any) -> dict[str, Any]:
    head = {"role": role, "name": name, "architecture": architecture, "licence": source.licence, "source": origin}
    return {**head, **rest}


def _save(module: Any, folder: Path, name: str) -> dict[str, str]:
    from hawkeye_export import torchscript

    path = folder / f"{name}.float32.pt"
    torchscript.save(module, path)
    return {"dtype": "float32", "path": path.name, "sha256": sha256_of_file(path)}


def _package_origin(source: Source) -> dict[str, str]:
    return {"package": source.requirement, "path": source.path, "sha256": source.sha256}


def _build(folder: Path, name: str, detector: str) -> None:
    data, origin = detector_bytes(detector)
    # Imported late: a bundle that is there already, and a refused file, need none of it.
    import torch

    from hawkeye_export import detector as icon
    from hawkeye_export import ocr
    from hawkeye_export.sources import load_checkpoint, ocr_path

    print_licences()
    torch.manual_seed(0)
    say("icon detector: sha256 matches the published one; exporting (YOLO11m, float32)")
    model = icon.fused_model(load_checkpoint(data))
    module = icon.export_detector(model)
    files = [_save(module, folder, "detector")]
    say(f"icon detector: comparing the saved file with ultralytics at {len(icon.VERIFY_SHAPES)} shapes")
    verified = icon.verify_detector(torch.jit.load(str(folder / files[0]["path"])), model)
    say(f"icon detector: largest difference {verified['maxBoxDifferencePixels']:.1e} px, {verified['maxScoreDifference']:.1e} in score")
    models = [
        _model("detector", "omniparser-v2-icon-detect", "yolo11m", DETECTOR, origin,
               imageSize=icon.IMAGE_SIZE, stride=icon.STRIDE, channelOrder="RGB", padValue=114, files=files,
               verification=verified),
    ]  # fmt: skip
    del model, module

    det, rec = ocr_path(OCR_DETECTOR), ocr_path(OCR_RECOGNIZER)
    say("text detector: converting PP-OCRv6 small and comparing with ONNX Runtime")
    files = [_save(ocr.export_detector(det), folder, "ocr-detector")]
    worst = ocr.verify_detector(torch.jit.load(str(folder / files[0]["path"])), det)
    say(f"text detector: largest difference {worst:.1e}")
    models.append(
        _model("ocr-detector", "PP-OCRv6_det_small", "db", OCR_DETECTOR, _package_origin(OCR_DETECTOR), stride=32,
               **OCR_NORMALISATION, **OCR_DETECTOR_LIMITS, files=files, verification={"maxDifference": worst})
    )  # fmt: skip
    say("text recogniser: converting PP-OCRv6 small and comparing with ONNX Runtime")
    module, names = ocr.export_recognizer(rec)
    files = [_save(module, folder, "ocr-recognizer")]
    worst = ocr.verify_recognizer(torch.jit.load(str(folder / files[0]["path"])), rec)
    say(f"text recogniser: largest difference {worst:.1e}, {len(names) + 1} classes")
    listed = folder / "characters.txt"
    listed.write_text("".join(f"{item}\n" for item in names), encoding="utf-8", newline="\n")
    models.append(
        _model("ocr-recognizer", "PP-OCRv6_rec_small", "ctc", OCR_RECOGNIZER, _package_origin(OCR_RECOGNIZER),
               imageHeight=ocr.REC_HEIGHT, output="logits", classes=len(names) + 1, **OCR_NORMALISATION,
               **OCR_RECOGNIZER_LIMITS, files=files,
               characters={"path": listed.name, "sha256": sha256_of_file(listed)}, verification={"maxDifference": worst})
    )  # fmt: skip

    manifest = {"formatVersion": FORMAT_VERSION, "name": name, "createdBy": CREATED_BY, "testOnly": False}
    manifest |= {"exporter": exporter_digest(), "versions": versions(), "models": models}
    _write_licences(folder, None)
    _write_manifest(folder, manifest)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _take_over(folder: Path, reuse: Path, name: str) -> None:
    """Copies detector and OCR from a valid bundle of this very exporter."""
    manifest = check_bundle(reuse)
    if not _is_of_this_exporter(manifest):
        raise ExportError(f"{reuse} was made by another exporter or of other sources: leave --reuse out, or make it anew first")
    manifest["models"] = [model for model in manifest["models"] if model["role"] != "captioner"]
    for model in manifest["models"]:
        for entry in _listed_files(model):
            shutil.copyfile(reuse / entry["path"], folder / entry["path"])
    _write_licences(folder, None)
    _write_manifest(folder, manifest | {"name": name, "testOnly": False})


def _add_captioner(folder: Path, caption: Request) -> None:
    from hawkeye_export.captioner import export

    model = export(folder, caption)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["models"].append(model)
    _write_licences(folder, caption)
    _write_manifest(folder, manifest | {"testOnly": caption.origin.test_only})


def write_bundle(
    out: Path, detector: str, name: str | None = None, *, caption: Request | None = None, reuse: Path | None = None
) -> bool:
    """Makes `out` a valid bundle, with a captioner if one is asked for. Returns False when it already was one.

    The folder appears whole or not at all: it is built beside `out` and renamed. `reuse` is a bundle whose detector and OCR are
    taken over instead of being exported again.
    """
    out = out.absolute()
    name = name or out.name
    if detector != OMNIPARSER_V2:
        # A wrong file is refused even where there is nothing left to do with it.
        verified_bytes(Path(detector), DETECTOR)
    if _is_current(out, name, caption):
        say(f"{out} is up to date: every sha256 matches")
        return False
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise ExportError(f"{out} exists and is not a bundle; give a folder that is new or empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        built = scratch / "bundle"
        built.mkdir()
        if reuse is None:
            _build(built, name, detector)
        else:
            _take_over(built, reuse, name)
        if caption is not None:
            _add_captioner(built, caption)
        check_bundle(built)
        for path in built.iterdir():
            path.chmod(0o644)
        built.chmod(0o755)
        if out.exists():
            out.rename(scratch / "replaced")
        try:
            built.rename(out)
        except OSError:
            if (scratch / "replaced").exists():
                (scratch / "replaced").rename(out)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"wrote {out} ({sum(p.stat().st_size for p in out.iterdir()) / 1e6:.0f} MB)")
    return True
