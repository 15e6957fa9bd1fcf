"""The icon detector as one TorchScript file whose height, width and batch may change with every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hawkeye_export.errors import UnsupportedGraphError, VerificationError

STRIDE = 32
IMAGE_SIZE = 1280
"""Longest side after letterboxing: the `imgsz` that the checkpoint was trained with."""

VERIFY_SHAPES = ((1, 736, 1280), (1, 1280, 832), (2, 320, 480))
"""Batch, height and width of the inputs that an export is verified with."""

BOX_TOLERANCE = 1e-3
"""Largest accepted difference of a box coordinate, in pixels."""

SCORE_TOLERANCE = 1e-4


class Features(nn.Module):
    """Backbone, neck and the head's convolutions: image → per stride (B, 4·bins + classes, H/stride, W/stride)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model.model[:-1])
        self.routes = [layer.f for layer in self.layers]
        head = model.model[-1]
        self.head_inputs: list[int] = list(head.f)
        self.box = head.cv2
        self.cls = head.cv3

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for layer, route in zip(self.layers, self.routes, strict=True):
            # A route names the layers whose outputs feed this one; -1 is the layer before.
            if isinstance(route, int):
                x = layer(x if route == -1 else outputs[route])
            else:
                x = layer([x if source == -1 else outputs[source] for source in route])
            outputs.append(x)
        maps = [outputs[index] for index in self.head_inputs]
        pairs = zip(maps, self.box, self.cls, strict=True)
        return tuple(torch.cat((box(feature), cls(feature)), 1) for feature, box, cls in pairs)


class Decode(nn.Module):
    """Feature maps → (B, 4 + classes, N): centre, width and height in input pixels, then sigmoid scores.

    Scripted, so that the anchor grid follows the maps' sizes and device at run time. Decodes in float32 whatever the
    maps are: float16 cannot tell neighbouring pixels apart above 1024.
    """

    def __init__(self, bins: int, strides: list[float]) -> None:
        super().__init__()
        self.bins = bins
        self.strides = strides
        self.register_buffer("projection", torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        decoded: list[Tensor] = []
        for index, feature in enumerate(maps):
            feature = feature.float()
            stride = self.strides[index]
            batch, _, height, width = feature.shape
            edges, logits = feature.flatten(2).split([4 * self.bins, feature.size(1) - 4 * self.bins], 1)
            # Each edge distance is the expectation of a distribution over `bins` steps of one stride.
            weights = edges.reshape(batch, 4, self.bins, height * width).transpose(1, 2).softmax(1)
            distance = F.conv2d(weights, self.projection.to(weights.dtype)).squeeze(1)
            left_top, right_bottom = distance.split(2, 1)
            x = torch.arange(width, device=feature.device, dtype=feature.dtype) + 0.5
            y = torch.arange(height, device=feature.device, dtype=feature.dtype) + 0.5
            grid = torch.stack((x.repeat(height), y.repeat_interleave(width)), 0).unsqueeze(0)
            near, far = grid - left_top, grid + right_bottom
            decoded.append(torch.cat(((near + far) / 2 * stride, (far - near) * stride, logits.sigmoid()), 1))
        return torch.cat(decoded, 2)


class Detector(nn.Module):
    """(B, 3, H, W) RGB in 0..1, H and W multiples of 32 → (B, 5, N) as `Decode` says."""

    def __init__(self, features: torch.jit.ScriptModule, decode: Decode) -> None:
        super().__init__()
        self.features = features
        self.decode = decode

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.features(x)
        return self.decode([first, second, third])


def fused_model(checkpoint: dict) -> nn.Module:
    """The checkpoint's network in float32 with batch norms folded into convolutions, as ultralytics predicts with it."""
    model = (checkpoint.get("ema") or checkpoint["model"]).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.fuse(verbose=False)


def export_detector(model: nn.Module) -> torch.jit.ScriptModule:
    """Builds the TorchScript module from a fused ultralytics detection model with three strides."""
    head = model.model[-1]
    if type(head).__name__ != "Detect" or head.nl != 3 or getattr(head, "end2end", False):
        raise UnsupportedGraphError(f"expected a three-stride Detect head, found {type(head).__name__} with {head.nl}")
    features = Features(model).eval()
    with torch.no_grad():
        # Batch 2 and unequal sides, so that no dimension of the example is 1 or equals another.
        traced = torch.jit.trace(features, torch.rand(2, 3, 320, 448), check_trace=False)
        decode = Decode(int(head.reg_max), [float(stride) for stride in head.stride])
        return torch.jit.script(Detector(traced, decode).eval())


def _synthetic_screen(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Buttons on a window: plain noise would leave every score near zero and verify nothing about scores."""
    image = 0.9 + 0.02 * torch.rand(batch, 3, height, width, generator=generator)
    for item in image:
        for _ in range(24):
            x, y, w, h = (torch.rand(4, generator=generator) * torch.tensor([width - 120, height - 60, 100, 40])).int().tolist()
            colour = torch.rand(3, 1, 1, generator=generator)
            item[:, y : y + h + 20, x : x + w + 20] = colour
            item[:, y + 6 : y + h + 10, x + 6 : x + w // 2 + 10] = 1 - colour
    return image


def verify_detector(module: torch.jit.ScriptModule, model: nn.Module) -> dict[str, float]:
    """Compares with ultralytics' own forward pass; returns the largest differences, raises VerificationError past them."""
    worst_box = worst_score = best = 0.0
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for batch, height, width in VERIFY_SHAPES:
            image = _synthetic_screen(batch, height, width, generator)
            ours, theirs = module(image), model(image)[0]
            if ours.shape != theirs.shape:
                raise VerificationError(f"detector at {height}x{width}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
            worst_box = max(worst_box, (ours[:, :4] - theirs[:, :4]).abs().max().item())
            worst_score = max(worst_score, (ours[:, 4:] - theirs[:, 4:]).abs().max().item())
            best = max(best, theirs[:, 4:].max().item())
    if best < 0.5:
        raise VerificationError(f"ultralytics found nothing on the test screens (best score {best:.2f}): nothing was compared")
    # `not <=` also rejects NaN.
    if not (worst_box <= BOX_TOLERANCE and worst_score <= SCORE_TOLERANCE):
        raise VerificationError(f"detector differs from ultralytics by {worst_box:.2e} px, {worst_score:.2e} in score")
    return {"maxBoxDifferencePixels": worst_box, "maxScoreDifference": worst_score}
