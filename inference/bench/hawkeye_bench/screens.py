"""Screenshots to time with, drawn anew each time and the same everywhere: no fonts or files of the machine are used."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (1920, 1080)

WORDS = (
    "account active address after archive before branch budget build cancel change check client cluster column commit create "
    "current date default delete detail device disk download edit email enable error event export failed field file filter folder "
    "group host image import index input invoice issue item label last limit list local member memory message minute model month "
    "name network node number open order owner page parent path pending policy port price process profile project quota ready "
    "record region release remove report request result role route running schedule search server service session settings size "
    "source start state status storage summary system table target task team time token total update upload user value version"
).split()


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def icons() -> bytes:
    """A desktop of 12 × 10 coloured app icons, each with a glyph and a name below, as the detector knows them: it finds all. PNG."""
    choose = random.Random(4)
    font = ImageFont.load_default(size=14)
    image = Image.new("RGB", SIZE, (235, 238, 242))
    draw = ImageDraw.Draw(image)
    for row in range(10):
        for column in range(12):
            x, y, side = 40 + column * 155, 24 + row * 105, 60
            colour = tuple(choose.randrange(30, 220) for _ in range(3))
            draw.rounded_rectangle([x, y, x + side, y + side], 10, colour)
            _glyph(draw, choose, x + side // 4, y + side // 4, side // 2)
            draw.text((x - 4, y + side + 4), choose.choice(WORDS).capitalize(), (20, 20, 20), font)
    return _png(image)


def _glyph(draw: ImageDraw.ImageDraw, choose: random.Random, x: int, y: int, side: int) -> None:
    white, middle = (250, 250, 250), side // 2
    box = [x, y, x + side, y + side]
    match choose.randrange(6):
        case 0:
            draw.ellipse(box, outline=white, width=4)
            draw.line([x + middle, y + 4, x + middle, y + middle, x + side - 6, y + middle], white, 4)
        case 1:
            draw.polygon([(x, y + side), (x + middle, y), (x + side, y + side)], white)
        case 2:
            for bar in range(3):
                draw.rectangle([x, y + bar * side // 3, x + side, y + bar * side // 3 + side // 8], white)
        case 3:
            draw.rectangle([x + middle - 3, y, x + middle + 3, y + side], white)
            draw.rectangle([x, y + middle - 3, x + side, y + middle + 3], white)
        case 4:
            draw.rectangle(box, outline=white, width=4)
            draw.line([x, y, x + middle, y + middle, x + side, y], white, 4)
        case _:
            draw.ellipse([x, y, x + side - 8, y + side - 8], outline=white, width=5)
            draw.line([x + side - 10, y + side - 10, x + side, y + side], white, 6)


def text() -> bytes:
    """A dense page: 3 columns of 47 lines of words and numbers, 141 lines in all. PNG."""
    choose = random.Random(6)
    font = ImageFont.load_default(size=15)
    image = Image.new("RGB", SIZE, (252, 252, 252))
    draw = ImageDraw.Draw(image)
    for column in range(3):
        left, room = 24 + column * 632, 580
        for row in range(47):
            line = ""
            goal = choose.uniform(0.35, 1.0) * room
            while draw.textlength(line, font) < goal:
                word = choose.choice(WORDS) if choose.random() < 0.85 else str(choose.randrange(10, 99999))
                if draw.textlength(f"{line} {word}", font) > room:
                    break
                line = f"{line} {word}".strip()
            draw.text((left, 10 + row * 22.6), line.capitalize(), (28, 30, 34), font)
    return _png(image)


SCREENS = {"icons": icons, "text": text}


if __name__ == "__main__":
    for name, draw in SCREENS.items():
        (Path(sys.argv[1]) / f"{name}.png").write_bytes(draw())
