"""Pictures that the provider's rules were not made with: other shapes, letters, grounds, angles and names.

Check them after a change of a rule, but do not use them to find its numbers. Rows are as in table.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.recognition.scenes import Color, lit, shade
from benchmarks.recognition.table import Row

INK, CHALK = (26, 26, 30), (242, 242, 238)
# (width, slant, weight, space between letters) in multiples of what the font has; weight in pixels at size 100.
STYLES = {
    "upright": (1.0, 0.0, 0.0, 0.0),
    "slanted": (1.0, 0.22, 2.0, 0.0),
    "narrow": (0.68, 0.0, 2.0, 0.0),
    "wide": (1.45, 0.0, 1.0, 0.0),
    "spaced": (1.0, 0.0, 0.0, 0.35),
    "heavy": (1.05, 0.0, 6.0, 0.08),
}


def letter(
    image: Image.Image, center: tuple[float, float], text: str, size: int, ink: Color, style: str, turn: float = 0
) -> None:
    """Write one line around the center, in letters of that style, turned by so many degrees."""
    width, slant, weight, space = STYLES[style]
    font = ImageFont.load_default(size=size)
    stroke = round(weight * size / 100)
    long = sum(font.getlength(each) + space * size for each in text)
    high = 2 * size
    line = Image.new("RGBA", (round(long + high), high))
    pen, x = ImageDraw.Draw(line), high / 2
    for each in text:
        pen.text((x, size), each, font=font, fill=ink, anchor="lm", stroke_width=stroke, stroke_fill=ink)
        x += font.getlength(each) + space * size
    if slant:
        shear = (1, slant, -slant * size, 0, 1, 0)
        line = line.transform(line.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC)
    line = line.resize((max(1, round(line.width * width)), line.height), Image.Resampling.LANCZOS)
    line = line.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    image.alpha_composite(line, (max(0, round(center[0] - line.width / 2)), max(0, round(center[1] - line.height / 2))))


def leaning(draw: Callable[..., Image.Image], *args: Any, turn: float = 0) -> Image.Image:
    """A product as seen from one side, its right end further away, turned by so many degrees."""
    image = draw(*args)
    w, h = image.size
    corners = ((0, 0), (w, 0.14 * h), (w, 0.86 * h), (0, h))
    rows: list[list[float]] = []
    ends: list[float] = []
    for (x, y), (u, v) in zip(corners, ((0, 0), (w, 0), (w, h), (0, h)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        ends += [u, v]
    terms = np.linalg.solve(np.array(rows), np.array(ends))
    seen = image.transform(image.size, Image.Transform.PERSPECTIVE, tuple(terms), Image.Resampling.BICUBIC)
    return seen.rotate(turn, Image.Resampling.BICUBIC, expand=True)


def carton(color: Color, lines: Sequence[tuple[str, int]], style: str = "upright", ink: Color = CHALK) -> Image.Image:
    """A box from the side, with a stripe."""
    image = Image.new("RGBA", (1100, 700), (*color, 255))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 560, 1100, 620), fill=shade(color, 0.75))
    y = 90.0
    for text, size in lines:
        y += 0.7 * size
        letter(image, (550, y), text, size, ink, style)
        y += 0.75 * size
    return lit(image, lambda x, y: 0.9 + 0.2 * x)


def compact(color: Color, brand: str, model: str = "", style: str = "upright", size: int = 56) -> Image.Image:
    """A small camera: the lens beside the middle, a flash, the names along its lower and upper edge."""
    image = Image.new("RGBA", (1000, 620))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((160, 20, 300, 90), 14, fill=shade(color, 0.8))
    pen.rounded_rectangle((20, 60, 980, 600), 70, fill=color)
    for radius, level in ((190, 40), (176, 84), (150, 26), (110, 58), (70, 14)):
        pen.ellipse((640 - radius, 330 - radius, 640 + radius, 330 + radius), fill=(level, level, level + 3))
    pen.rounded_rectangle((120, 110, 300, 190), 12, fill=(226, 228, 222))
    ink = CHALK if sum(color) < 380 else INK
    letter(image, (240, 290), brand, size, ink, style)
    letter(image, (240, 520), model, round(size * 0.7), ink, style)
    return lit(image, lambda x, y: 1.1 - 0.25 * y)


def hightop(color: Color, toe: Color, text: str = "", style: str = "upright", size: int = 54) -> Image.Image:
    """A high shoe from the side."""
    image = Image.new("RGBA", (1050, 900))
    pen = ImageDraw.Draw(image)
    pen.polygon([(120, 760), (110, 420), (150, 60), (440, 40), (480, 330), (700, 500), (960, 600), (1000, 760)], color)
    pen.pieslice((760, 560, 1040, 960), 180, 300, fill=toe)
    for step in range(7):
        x, y = 450 + max(0, step - 3) * 58, 110 + step * 62
        pen.line((x - 46, y + 16, x + 44, y - 10), fill=CHALK, width=16)
    pen.rounded_rectangle((96, 740, 1020, 850), 46, fill=(236, 232, 222))
    pen.rectangle((110, 800, 1006, 812), fill=shade(color, 0.8))
    letter(image, (300, 460), text, size, CHALK if sum(color) < 400 else INK, style)
    return lit(image, lambda x, y: 1.06 - 0.2 * y)


def watch(color: Color, brand: str, model: str = "", style: str = "upright") -> Image.Image:
    """A wrist watch, its strap of that colour."""
    image = Image.new("RGBA", (620, 1200))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((170, 10, 450, 1190), 60, fill=color)
    for radius, fill in ((290, (168, 170, 174)), (262, (96, 98, 102)), (250, (244, 243, 238))):
        pen.ellipse((310 - radius, 600 - radius, 310 + radius, 600 + radius), fill=fill)
    for hour in range(12):
        x, y = math.sin(hour * math.tau / 12), -math.cos(hour * math.tau / 12)
        pen.line((310 + 205 * x, 600 + 205 * y, 310 + 238 * x, 600 + 238 * y), fill=INK, width=10)
    pen.line((310, 600, 210, 690), fill=INK, width=12)
    pen.line((310, 600, 470, 640), fill=INK, width=8)
    letter(image, (310, 490), brand, 48, INK, style)
    letter(image, (310, 735), model, 34, INK, style)
    return image


def case(color: Color, brand: str, model: str = "", notes: Sequence[str] = (), style: str = "heavy") -> Image.Image:
    """A tool's case with a handle."""
    image = Image.new("RGBA", (1000, 720))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((330, 10, 670, 160), 40, fill=shade(color, 0.5))
    pen.rounded_rectangle((380, 56, 620, 170), 20, fill=(0, 0, 0, 0))
    pen.rounded_rectangle((20, 120, 980, 700), 40, fill=color)
    pen.rectangle((20, 330, 980, 344), fill=shade(color, 0.6))
    for x in (180, 740):
        pen.rectangle((x, 300, x + 80, 390), fill=shade(color, 0.4))
    ink = CHALK if sum(color) < 400 else INK
    letter(image, (500, 240), brand, 96, ink, style)
    letter(image, (500, 460), model, 60, ink, style)
    for row, text in enumerate(notes):
        letter(image, (500, 540 + 40 * row), text, 26, ink, "upright")
    return lit(image, lambda x, y: 1.08 - 0.22 * y)


def mug(color: Color, text: str = "", style: str = "upright") -> Image.Image:
    """A mug with its handle to the right."""
    image = Image.new("RGBA", (860, 760))
    pen = ImageDraw.Draw(image)
    pen.ellipse((520, 180, 850, 560), outline=color, width=66)
    pen.rounded_rectangle((40, 40, 660, 740), 60, fill=color)
    pen.ellipse((40, 10, 660, 110), fill=shade(color, 0.55))
    letter(image, (350, 400), text, 84, CHALK if sum(color) < 420 else INK, style)
    return lit(image, lambda x, y: 1.1 - 0.35 * abs(x - 0.35))


CRIMSON, FOREST, COBALT, SAND = (168, 24, 44), (24, 84, 50), (30, 70, 170), (206, 182, 140)
PLUM, TEAL, COAL, SNOW, SUN = (96, 44, 128), (10, 124, 126), (36, 36, 38), (246, 246, 244), (238, 190, 36)
ASH, RUST, CREAM, ROSE, STEEL = (118, 118, 122), (208, 88, 34), (240, 228, 196), (238, 156, 184), (186, 188, 192)
p = partial

ROWS: list[Row] = [
    ("camera", "brick", p(compact, COAL, "RICOH", "GR III", "slanted"), "Ricoh", "GR III", "Black"),
    ("camera", "marble", p(compact, STEEL, "Canon", "PowerShot G7 X", "upright", 46), "Canon", "PowerShot G7 X",
     "Silver Gray"),
    ("camera", "grass", p(compact, CRIMSON, "OLYMPUS", "TG-6", "narrow"), "Olympus", "TG-6", "Red Burgundy"),
    ("camera", "tiles", p(compact, SUN, "KODAK", "FZ55", "heavy"), "Kodak", "FZ55", "Yellow"),
    ("camera", "leather", p(compact, STEEL, "YASHICA", "", "spaced"), "Yashica", "", "Silver Gray"),
    ("camera", "marble", p(compact, COAL, "PRAKTICA", "MTL 5B", "wide", 40), "Praktica", "MTL 5B", "Black"),
    ("camera", "brick", p(compact, COAL, "GoPro", "HERO9", "heavy"), "GoPro", "HERO9", "Black"),
    ("camera", "tiles", p(compact, COAL, "VOIGTLANDER", "", "upright", 40), "Voigtländer", "", "Black"),
    ("sneaker", "brick", p(hightop, COAL, SNOW, "CONVERSE", "narrow"), "Converse", "", "Black"),
    ("sneaker", "marble", p(hightop, CRIMSON, SNOW), "", "", "Red Burgundy"),
    ("sneaker", "grass", p(hightop, SNOW, ROSE, "FILA", "heavy"), "Fila", "", "White"),
    ("sneaker", "leather", p(hightop, TEAL, CREAM), "", "", "Teal"),
    ("sneaker", "tiles", p(hightop, SAND, SNOW, "VEJA", "spaced"), "Veja", "", "Beige"),
    ("sneaker", "white", p(hightop, ROSE, SNOW), "", "", "Pink"),
    ("sneaker", "grass", p(carton, CRIMSON, [("saucony", 130), ("JAZZ 81", 90)], "slanted"), "Saucony", "Jazz 81",
     "Red Burgundy"),
    ("sneaker", "marble", p(carton, CREAM, [("VANS", 150), ("Old Skool", 80)], "heavy", INK), "Vans", "Old Skool",
     "Cream Beige"),
    ("sneaker", "brick", p(carton, COBALT, [("MIZUNO", 130), ("WAVE RIDER 27", 70)], "narrow"), "Mizuno",
     "Wave Rider 27", "Blue"),
    ("lego", "tiles", p(carton, FOREST, [("LEGO", 150), ("NINJAGO", 100), ("71741", 80)], "heavy"), "LEGO",
     "Ninjago 71741", "Green"),
    ("lego", "grass", p(carton, COAL, [("LEGO", 150), ("ICONS", 90), ("10497", 80), ("1254 pcs", 44)], "narrow"),
     "LEGO", "Icons 10497", "Black"),
    ("lego", "marble", p(carton, RUST, [("LEGO", 150), ("FRIENDS", 100)], "upright"), "LEGO", "", "Orange"),
    ("other", "brick", p(case, TEAL, "Makita", "HR2630"), "Makita", "HR2630", "Teal"),
    ("other", "grass", p(case, SUN, "DeWALT", "DCD796", ["18V XR LITHIUM-ION", "MADE IN CZ 04-2021"]), "DeWalt",
     "DCD796", "Yellow"),
    ("other", "tiles", p(case, COBALT, "BOSCH", "", ["Typ 3 601 J", "GSR 0603-9"]), "Bosch", "", "Blue"),
    ("other", "marble", p(case, CRIMSON, "HILTI", "TE 2", style="wide"), "Hilti", "TE 2", "Red Burgundy"),
    ("other", "leather", p(case, ASH, "BRELVONA", style="spaced"), "Brelvona", "", "Gray"),
    ("other", "marble", p(watch, COAL, "SEIKO", "AUTOMATIC"), "Seiko", "", "White Black Silver"),
    ("other", "leather", p(watch, SAND, "TISSOT", "1853", "spaced"), "Tissot", "", "White Beige Silver"),
    ("other", "tiles", p(watch, PLUM, "swatch", "swiss made", "heavy"), "Swatch", "", "White Purple Silver"),
    ("other", "grass", p(mug, CREAM, "NESCAFE", "heavy"), "Nescafé", "", "Cream Beige"),
    ("other", "brick", p(mug, PLUM), "", "", "Purple"),
    ("other", "marble", p(mug, SNOW, "HAPPY", "slanted"), "", "", "White"),
    ("other", "white", p(mug, COBALT, "KORVELLO", "narrow"), "Korvello", "", "Blue"),
    ("other", "tiles", p(leaning, case, CRIMSON, "HILTI", "TE 30"), "Hilti", "TE 30", "Red Burgundy"),
    ("sneaker", "leather", p(leaning, carton, SNOW, [("KARHU", 150), ("FUSION 2.0", 80)], "heavy", INK, turn=9),
     "Karhu", "Fusion 2.0", "White"),
]
