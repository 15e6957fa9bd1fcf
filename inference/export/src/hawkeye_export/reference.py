"""What the Python stack finds on a screenshot: ultralytics' predict and rapidocr on ONNX Runtime, as the tests' oracle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import cv2

from hawkeye_export.bundle import versions
from hawkeye_export.detector import IMAGE_SIZE
from hawkeye_export.errors import ExportError
from hawkeye_export.progress import say
from hawkeye_export.sources import OCR_DETECTOR, OCR_RECOGNIZER, detector_bytes, ocr_path, quiet_ultralytics

# OmniParser's settings, and rapidocr's default text score.
MIN_CONFIDENCE = 0.05
IOU = 0.1
MAX_DETECTIONS = 300
TEXT_SCORE = 0.5


class Reference:
    """Holds both models. Boxes are pixels of the image, x1 y1 x2 y2; quads start at the top left and go clockwise."""

    def __init__(self, detector: str) -> None:
        data, _ = detector_bytes(detector)
        quiet_ultralytics()
        from rapidocr import RapidOCR
        from ultralytics import YOLO

        # ultralytics loads by path: it gets a private copy of the bytes that were verified.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            path.write_bytes(data)
            self._yolo = YOLO(str(path), task="detect")
        params = {
            "Global.use_cls": False,
            "Global.text_score": TEXT_SCORE,
            "Global.log_level": "critical",
            "Det.model_path": str(ocr_path(OCR_DETECTOR)),
            "Rec.model_path": str(ocr_path(OCR_RECOGNIZER)),
        }
        self._ocr = RapidOCR(params=params)

    def read(self, path: Path) -> dict[str, Any]:
        """The reference document of one image. Raises ExportError when it is no image."""
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ExportError(f"{path} is not an image that can be read")
        height, width = image.shape[:2]
        return {
            "image": path.name,
            "width": width,
            "height": height,
            "detector": self._icons(image),
            "text": self._text(image),
            "options": {
                "min_confidence": MIN_CONFIDENCE,
                "iou": IOU,
                "imgsz": IMAGE_SIZE,
                "max_det": MAX_DETECTIONS,
                "text_score": TEXT_SCORE,
            },
            "versions": versions(),
        }

    def _icons(self, image: Any) -> list[dict[str, Any]]:
        # A numpy array must be BGR, as OpenCV reads it; ultralytics turns it into RGB.
        (result,) = self._yolo.predict(
            image, conf=MIN_CONFIDENCE, iou=IOU, imgsz=IMAGE_SIZE, max_det=MAX_DETECTIONS, rect=True, device="cpu",
            half=False, save=False, verbose=False,
        )  # fmt: skip
        boxes, scores = result.boxes.xyxy.tolist(), result.boxes.conf.tolist()
        pairs = zip(boxes, scores, strict=True)
        return [{"bbox": [round(edge, 2) for edge in box], "score": round(score, 5)} for box, score in pairs]

    def _text(self, image: Any) -> list[dict[str, Any]]:
        found = self._ocr(image)
        if found.boxes is None or found.txts is None:
            return []
        lines = zip(found.boxes.tolist(), found.txts, found.scores, strict=True)
        return [
            {"quad": [[round(x, 2), round(y, 2)] for x, y in quad], "text": text, "score": round(float(score), 5)}
            for quad, text, score in lines
        ]


def write_references(images: list[Path], out: Path | None, detector: str) -> list[Path]:
    """Writes `<stem>.reference.json` for each image into `out`, or beside the image. Returns the paths."""
    reference = Reference(detector)
    written = []
    for image in images:
        document = reference.read(image)
        folder = out or image.parent
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{image.stem}.reference.json"
        target.write_text(to_json(document), encoding="utf-8")
        say(f"{image.name}: {len(document['detector'])} icons, {len(document['text'])} lines of text → {target}")
        written.append(target)
    return written


def to_json(document: dict[str, Any]) -> str:
    """JSON with one detection per line, so that a change of a reference reads well as a diff."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            rows = ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in value)
            parts.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
