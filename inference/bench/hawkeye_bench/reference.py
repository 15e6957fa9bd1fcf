"""The Python pipeline to compare with: ultralytics, rapidocr and Hugging Face's Florence-2 in the order of OmniParser's service.

Wherever its published description leaves a choice, this takes the faster one: the detector runs once, not twice; overlaps are
removed with numpy, not in Python loops; there is no HTTP. The captioner has the weights of the bundle that the service loads.
"""

from __future__ import annotations

import base64
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from hawkeye_export.caption_original import generate, original
from hawkeye_export.caption_reference import MEAN, STD, Rules
from hawkeye_export.caption_tokenizer import prompts, seeded_tokenizer
from hawkeye_export.caption_weights import ENDLESS, locate, read
from hawkeye_export.florence2 import BASE
from hawkeye_export.sources import OCR_DETECTOR, OCR_RECOGNIZER, OMNIPARSER_V2, detector_bytes, ocr_path, quiet_ultralytics

IMAGE_SIZE, MIN_CONFIDENCE, IOU, OVERLAP, MAX_DETECTIONS = 1280, 0.05, 0.1, 0.1, 300
PATCHES_768 = 577
"""Tokens of one crop at 768×768; at 64×64 there are 5."""

RULES = Rules()


class Reference:
    """Models on a device, in float32 on the CPU and float16 on CUDA, as OmniParser's service has them."""

    def __init__(self, device: str, prompt: str) -> None:
        quiet_ultralytics()
        from ultralytics import YOLO

        self.device = device
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        data, _ = detector_bytes(OMNIPARSER_V2)
        # ultralytics loads by path: it gets a private copy of the bytes that were verified.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            path.write_bytes(data)
            self.yolo = YOLO(str(path), task="detect")
        self.captioner, self.question, self.tokenizer = _florence(device, self.dtype, prompt)

    def parse(self, picture: str, crops: int, *, as_shipped: bool = False) -> dict[str, float]:
        """Parses a base64 PNG and captions its `crops` best icons. Returns the stages' milliseconds.

        `as_shipped` scales crops to 768×768, which OmniParser's service does on processors. Raises ValueError when the picture has
        fewer icons.
        """
        watch = Stopwatch()
        image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
        pixels = np.asarray(image)
        watch.lap("decode")
        boxes = self._icons(pixels)
        watch.lap("detect")
        kept = boxes[_without_overlaps(boxes)][:crops]
        if len(kept) < crops:
            raise ValueError(f"the picture has {len(kept)} icons, not {crops}")
        watch.lap("merge")
        captions = self._captions(pixels, kept, as_shipped)
        watch.lap("caption")
        _drawn(pixels, kept)
        watch.lap("encode")
        if len(captions) != crops:
            raise ValueError(f"{len(captions)} captions for {crops} crops")
        return watch.laps

    def _icons(self, pixels: np.ndarray) -> np.ndarray:
        # A numpy array must be BGR, as OpenCV reads it.
        (result,) = self.yolo.predict(
            pixels[:, :, ::-1], conf=MIN_CONFIDENCE, iou=IOU, imgsz=IMAGE_SIZE, max_det=MAX_DETECTIONS, rect=True, device=self.device,
            half=self.dtype == torch.float16, save=False, verbose=False,
        )  # fmt: skip
        return result.boxes.xyxy.cpu().numpy()

    def _captions(self, pixels: np.ndarray, boxes: np.ndarray, as_shipped: bool) -> list[str]:
        crops = []
        for x1, y1, x2, y2 in boxes.astype(int):
            crops.append(cv2.resize(pixels[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)], (64, 64)))
        prepared = _processor(as_shipped)(images=crops, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
        tokens = PATCHES_768 if as_shipped else BASE.image_tokens
        out = generate(self.captioner, prepared, self.question, tokens, RULES)
        rows = out[:, 1:].tolist()
        if any(len(row) != RULES.max_new_tokens or RULES.end in row[:-1] for row in rows):
            raise ValueError("a caption did not have the full length")
        return self.tokenizer.decode_batch(rows, skip_special_tokens=True)


class OcrReference:
    """rapidocr on ONNX Runtime, on the processor wherever the other models run, as OmniParser's service reads text."""

    def __init__(self, threads: int | None) -> None:
        """`threads` for a process that is confined to so many processors, which ONNX Runtime does not see by itself."""
        from rapidocr import RapidOCR

        self.ocr = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
                "Global.use_cls": False, "Global.text_score": 0.5, "Global.log_level": "critical",
                "Det.model_path": str(ocr_path(OCR_DETECTOR)), "Rec.model_path": str(ocr_path(OCR_RECOGNIZER)),
            }
        )  # fmt: skip

    def read(self, picture: str) -> tuple[float, int]:
        """Milliseconds for a base64 PNG without its decoding, and how many lines were read."""
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR)
        begun = time.perf_counter()
        found = self.ocr(pixels)
        return (time.perf_counter() - begun) * 1e3, len(found.txts or ())


class Stopwatch:
    """Milliseconds from lap to lap; waits for the GPU at each."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] = (now - self.last) * 1e3
        self.last = now


def _florence(device: str, dtype: torch.dtype, prompt: str) -> tuple[Any, list[int], Any]:
    """Hugging Face's network with the seeded weights, the prompt's tokens, and the tokenizer."""
    from tokenizers import Tokenizer

    config, weights, bias = read(locate(ENDLESS))
    tokenizer = seeded_tokenizer(config.vocabulary, 0)
    model = original(config, weights, bias).to(device, dtype)
    return model, prompts(tokenizer, config.vocabulary)[prompt].tokens, Tokenizer.from_str(tokenizer)


def _processor(as_shipped: bool) -> Any:
    """What Florence-2's processor does with pictures."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        do_resize=as_shipped, size={"height": 768, "width": 768}, resample=3, do_center_crop=False, image_mean=MEAN, image_std=STD
    )


def _without_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Which of (N, 4) boxes stay: of two that overlap by more than OVERLAP of either or of both together, the smaller."""
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    near, far = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(far - near, 0, None).prod(2)
    union = size[:, None] + size[None, :] - shared
    share = np.maximum(shared / union, np.maximum(shared / size[:, None], shared / size[None, :]))
    larger = size[:, None] > size[None, :]
    return ~((share > OVERLAP) & larger).any(1)


def _drawn(pixels: np.ndarray, boxes: np.ndarray) -> str:
    """The numbered boxes as a base64 PNG."""
    picture = pixels.copy()
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int).tolist()):
        colour = (37 * number % 256, 91 * number % 256, 151 * number % 256)
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 1)
        cv2.rectangle(picture, (x1, y1 - 12), (x1 + 8 * len(str(number)) + 2, y1), colour, -1)
        cv2.putText(picture, str(number), (x1 + 1, y1 - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (255, 255, 255), 1, cv2.LINE_AA)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
