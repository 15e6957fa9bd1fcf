"""The exported modules: equal to their originals, free of fixed sizes, and right on the committed screenshots."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from rapidocr.utils.process_img import get_rotate_crop_image

from conftest import SCREENS
from hawkeye_export import detector as icon
from hawkeye_export import ocr
from hawkeye_export.errors import VerificationError
from hawkeye_export.sources import OCR_DETECTOR, OCR_RECOGNIZER, OMNIPARSER_V2, detector_bytes, load_checkpoint, ocr_path


def graph_text(module: torch.jit.ScriptModule) -> str:
    inlined = module.inlined_graph
    return str(inlined)


@pytest.mark.parametrize("role", ["detector", "ocr-detector", "ocr-recognizer"])
def test_no_device_is_baked_into_the_graph(role: str, module) -> None:
    text = graph_text(module(role))
    assert "aten::conv" in text or "aten::_convolution" in text
    for name in ('value="cpu"', 'value="cuda'):
        assert name not in text


def test_detector_equals_ultralytics_on_a_real_screen_at_other_shapes(module) -> None:
    """The export verified itself on noise; here a screenshot, at shapes that it did not use."""
    model = icon.fused_model(load_checkpoint(detector_bytes(OMNIPARSER_V2)[0]))
    image = cv2.cvtColor(cv2.imread(str(SCREENS / "demo.png")), cv2.COLOR_BGR2RGB)
    exported = module("detector")
    for width, height in ((544, 352), (320, 640)):
        x = torch.from_numpy(cv2.resize(image, (width, height))).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            ours, theirs = exported(x), model(x)[0]
        assert ours.shape == (1, 5, width * height * 21 // 1024)
        assert theirs[:, 4].max() > 0.2, "the screen must show something"
        assert (ours[:, :4] - theirs[:, :4]).abs().max() <= icon.BOX_TOLERANCE
        assert (ours[:, 4] - theirs[:, 4]).abs().max() <= icon.SCORE_TOLERANCE


def test_verification_fails_for_a_module_that_differs(module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 0.5

    monkeypatch.setattr(ocr, "DET_SHAPES", ((1, 64, 64),))
    monkeypatch.setattr(ocr, "REC_SHAPES", ((1, 64),))
    det, rec = module("ocr-detector"), module("ocr-recognizer")
    assert ocr.verify_detector(det, ocr_path(OCR_DETECTOR)) <= ocr.PROBABILITY_TOLERANCE
    with pytest.raises(VerificationError):
        ocr.verify_detector(Off(det), ocr_path(OCR_DETECTOR))
    with pytest.raises(VerificationError):
        ocr.verify_recognizer(Off(rec), ocr_path(OCR_RECOGNIZER))


def letterbox(image: np.ndarray) -> tuple[torch.Tensor, float, int, int]:
    """As the bundle's documentation says: scale the longer side to 1280, pad both sides to the next multiple of 32."""
    height, width = image.shape[:2]
    scale = min(icon.IMAGE_SIZE / height, icon.IMAGE_SIZE / width)
    inner_width, inner_height = round(width * scale), round(height * scale)
    if (inner_width, inner_height) != (width, height):
        image = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    x, y = (-inner_width % icon.STRIDE) / 2, (-inner_height % icon.STRIDE) / 2
    left, top = round(x - 0.1), round(y - 0.1)
    right, bottom = round(x + 0.1), round(y + 0.1)
    image = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    tensor = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).permute(2, 0, 1)[None].float() / 255
    return tensor, scale, left, top


@pytest.mark.parametrize("name", ["login", "settings", "dialog", "blank"])
def test_detector_finds_what_the_reference_found(name: str, module) -> None:
    """Landscape, portrait, enlarged and empty, from the raw PNG to the final boxes."""
    image = cv2.imread(str(SCREENS / f"{name}.png"))
    expected = json.loads((SCREENS / f"{name}.reference.json").read_text(encoding="utf-8"))["detector"]
    x, scale, left, top = letterbox(image)
    with torch.no_grad():
        found = module("detector")(x)[0].T
    found = found[found[:, 4] > 0.05]
    boxes = torchvision.ops.box_convert(found[:, :4], "cxcywh", "xyxy")
    keep = torchvision.ops.nms(boxes, found[:, 4], 0.1)[:300]
    boxes = (boxes[keep] - torch.tensor([left, top, left, top])) / scale
    boxes[:, 0::2].clamp_(0, image.shape[1])
    boxes[:, 1::2].clamp_(0, image.shape[0])
    assert len(boxes) == len(expected)
    for box, score, want in zip(boxes.tolist(), found[keep, 4].tolist(), expected, strict=True):
        assert box == pytest.approx(want["bbox"], abs=0.5)
        assert score == pytest.approx(want["score"], abs=2e-3)


def test_recognizer_reads_what_the_reference_read(bundle: Path, module) -> None:
    """Crops of the login page through normalisation, logits and CTC, as the manifest describes them."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    settings = manifest["models"][2]
    lines = ["", *(bundle / settings["characters"]["path"]).read_text(encoding="utf-8").split("\n")[:-1]]
    image = cv2.imread(str(SCREENS / "login.png"))  # BGR, the manifest's channelOrder
    reference = json.loads((SCREENS / "login.reference.json").read_text(encoding="utf-8"))["text"]
    sure = [item for item in reference if item["score"] > 0.97]
    assert len(sure) >= 8
    mean, std = (np.array(settings[key], dtype=np.float32) for key in ("mean", "std"))
    recognizer = module("ocr-recognizer")
    for item in sure:
        crop = get_rotate_crop_image(image, np.array(item["quad"], dtype=np.float32))
        ratio = crop.shape[1] / crop.shape[0]
        # rapidocr rounds the padded width down and the line's own width up.
        whole = max(settings["minWidth"], int(settings["imageHeight"] * ratio))
        width = min(whole, int(np.ceil(settings["imageHeight"] * ratio)))
        crop = (cv2.resize(crop, (width, settings["imageHeight"])).astype(np.float32) / 255 - mean) / std
        padded = np.zeros((1, 3, settings["imageHeight"], whole), np.float32)
        padded[0, :, :, :width] = crop.transpose(2, 0, 1)
        with torch.no_grad():
            classes = recognizer(torch.from_numpy(padded))[0].argmax(1).tolist()
        kept = [value for i, value in enumerate(classes) if value and (i == 0 or value != classes[i - 1])]
        assert "".join(lines[value] for value in kept) == item["text"]
