"""Draws the demo pictures: products as a phone would see them, with perspective, uneven light, noise and blur.

`python -m docs.pictures.demo_pictures` writes them into pipeline/demo/. Needs Pillow and numpy only; the lettering is
in Pillow's own font. Random numbers are seeded, so the pictures are the same each time.
Long because each of the five pictures is a list of strokes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageFont

Point = tuple[float, float]
Color = tuple[int, int, int]
Pixels = NDArray[np.floating[Any]]

SCENE = (2400, 1800)  # drawn at 1.5 times the size that is kept, so edges come out smooth
PHOTO = (1600, 1200)
JPEG_QUALITY = 84


def draw_camera() -> Image.Image:
    """Return a black mirrorless camera on a wooden table, seen from the front."""
    rng = np.random.default_rng(5)
    scene = _wood(rng, (176, 132, 92))
    _shadow(scene, [(520, 1330), (1920, 1330), (2010, 1460), (470, 1460)], blur=45, opacity=0.6)
    body = Image.new("RGBA", (1400, 1000))
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle((900, 120, 1080, 220), 24, fill=(38, 38, 41))
    for x in range(908, 1076, 12):
        pen.line((x, 128, x, 172), fill=(62, 62, 66), width=4)
    pen.ellipse((1120, 135, 1230, 230), fill=(30, 30, 33))
    pen.rounded_rectangle((170, 150, 330, 240), 20, fill=(34, 34, 37))
    pen.polygon([(430, 210), (520, 40), (800, 40), (890, 210)], fill=(33, 33, 36))
    pen.line([(520, 42), (800, 42)], fill=(96, 96, 100), width=5)
    pen.rounded_rectangle((40, 190, 1360, 960), 90, fill=(31, 31, 34))
    pen.rounded_rectangle((40, 190, 1360, 300), 60, fill=(42, 42, 45))
    body = _lit(body, lambda x, y: 1.18 - 0.45 * y)
    _leather(body, (48, 330, 1352, 950), rng)
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle((60, 300, 190, 930), 60, outline=(20, 20, 22), width=6)
    _write(pen, (660, 132), "Canon", 104, (238, 238, 238), bold=3)
    _write(pen, (1180, 262), "EOS R5", 74, (226, 226, 226), bold=2)
    _lens(body, (650, 610), 330, rng)
    _write(pen, (650, 322), "RF LENS 50mm 1:1.8", 30, (214, 214, 214))
    pen.ellipse((255, 350, 300, 395), fill=(150, 30, 26))
    _place(scene, body, [(480, 360), (1930, 400), (1900, 1440), (505, 1420)])
    return _photo(scene, rng, light=(0.3, 0.2), falloff=0.5, tilt=-2.0)


def draw_bricks() -> Image.Image:
    """Return a box of building bricks standing on a grey carpet."""
    rng = np.random.default_rng(6)
    scene = _fabric(rng, (148, 150, 152))
    cast = [(440, 1370), (1870, 1440), (2180, 1310), (2330, 1350), (2080, 1520), (520, 1450)]
    _shadow(scene, cast, blur=32, opacity=0.6)
    front = _brick_box_front(rng)
    side = Image.new("RGBA", (260, 1000), (20, 96, 168, 255))
    label = Image.new("RGBA", (1000, 260))
    _write(ImageDraw.Draw(label), (500, 130), "60316  CITY", 110, (255, 255, 255), bold=2)
    side.alpha_composite(label.rotate(90, expand=True))
    _place(scene, _lit(side, lambda x, y: 0.62 - 0.1 * y), [(1905, 372), (2200, 452), (2170, 1330), (1880, 1462)])
    _place(scene, _lit(front, lambda x, y: 1.08 - 0.2 * x), [(420, 300), (1905, 372), (1880, 1462), (450, 1400)])
    return _photo(scene, rng, light=(0.25, 0.3), falloff=0.45, tilt=1.5)


def draw_sneaker() -> Image.Image:
    """Return a sneaker beside its box, photographed with the phone held upright (EXIF orientation 6)."""
    rng = np.random.default_rng(7)
    scene = _fabric(rng, (206, 200, 190)).resize(SCENE[::-1])
    _shadow(scene, [(230, 1280), (1560, 1350), (1700, 1480), (420, 1500)], blur=40, opacity=0.5)
    lid = Image.new("RGBA", (1300, 200), (204, 62, 28, 255))
    _write(ImageDraw.Draw(lid), (1010, 104), "NIKE", 120, (255, 246, 238), bold=4)
    box = Image.new("RGBA", (1300, 420), (222, 78, 36, 255))
    pen = ImageDraw.Draw(box)
    pen.rectangle((60, 60, 640, 370), fill=(246, 244, 238))
    _write(pen, (350, 130), "AIR MAX 90", 84, (24, 24, 26), bold=2)
    _write(pen, (350, 215), "WHITE / RED", 50, (40, 40, 42))
    _write(pen, (200, 305), "US 9", 54, (24, 24, 26), bold=1)
    for x, width in zip(range(330, 610, 14), rng.integers(3, 10, 20), strict=True):
        pen.rectangle((x, 270, x + int(width), 340), fill=(24, 24, 26))
    top = Image.new("RGBA", (1300, 260), (232, 92, 46, 255))
    _place(scene, _lit(top, lambda x, y: 1.05 + 0.1 * y), [(360, 1150), (1430, 1170), (1560, 1290), (240, 1270)])
    _place(scene, _lit(box, lambda x, y: 0.9 - 0.15 * y), [(262, 1440), (1540, 1465), (1515, 1850), (285, 1820)])
    _shadow(scene, [(262, 1440), (1540, 1465), (1540, 1500), (262, 1475)], blur=14, opacity=0.5)
    _place(scene, _lit(lid, lambda x, y: 1.02 - 0.1 * y), [(240, 1270), (1560, 1290), (1548, 1472), (250, 1446)])
    _shadow(scene, [(330, 1180), (1450, 1190), (1500, 1235), (420, 1235)], blur=22, opacity=0.55)
    _place(scene, _shoe(rng), [(270, 610), (1530, 650), (1530, 1260), (270, 1220)])
    return _photo(scene, rng, light=(0.6, 0.25), falloff=0.4, tilt=1.0)


def draw_bare_sneaker() -> Image.Image:
    """Return a sneaker without a box and without any lettering, on a grey carpet."""
    rng = np.random.default_rng(9)
    scene = _fabric(rng, (168, 172, 176))
    _shadow(scene, [(430, 1270), (1960, 1300), (2120, 1440), (520, 1460)], blur=40, opacity=0.5)
    _place(scene, _shoe(rng), [(430, 480), (1990, 540), (1980, 1330), (420, 1290)])
    return _photo(scene, rng, light=(0.4, 0.25), falloff=0.4, tilt=-1.5)


def draw_radio() -> Image.Image:
    """Return a red portable radio on a pale table, darker and more tilted than the others."""
    rng = np.random.default_rng(8)
    scene = _wood(rng, (214, 204, 188))
    _shadow(scene, [(560, 1300), (1900, 1240), (2020, 1400), (520, 1480)], blur=45, opacity=0.6)
    body = Image.new("RGBA", (1400, 900))
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle((20, 90, 1380, 880), 70, fill=(168, 34, 36))
    body = _lit(body, lambda x, y: 1.15 - 0.4 * y)
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle((70, 150, 760, 820), 40, fill=(44, 42, 44))
    for y in range(180, 800, 26):
        for x in range(100, 740, 26):
            pen.ellipse((x, y, x + 13, y + 13), fill=(16, 16, 17))
    pen.rounded_rectangle((820, 330, 1320, 520), 20, fill=(232, 226, 204))
    for step in range(21):
        pen.line((845 + step * 22, 440, 845 + step * 22, 470 if step % 5 else 490), fill=(60, 54, 46), width=4)
    for step, text in enumerate(("88", "92", "96", "104", "108")):
        _write(pen, (850 + step * 108, 385), text, 38, (60, 54, 46))
    pen.line((1062, 345, 1062, 505), fill=(210, 50, 30), width=7)
    for x in (940, 1190):
        _knob(body, (x, 680), 95)
    pen = ImageDraw.Draw(body)
    _write(pen, (945, 235), "SONY", 104, (244, 240, 232), bold=4)
    _write(pen, (1222, 242), "ICF-306", 56, (236, 230, 220), bold=1)
    _place(scene, body, [(520, 480), (1900, 330), (1950, 1290), (560, 1400)])
    return _photo(scene, rng, light=(0.75, 0.15), falloff=0.6, tilt=5.0)


def _shoe(rng: np.random.Generator) -> Image.Image:
    shoe = Image.new("RGBA", (1300, 620))
    pen = ImageDraw.Draw(shoe)
    upper = _curve(
        [(70, 480), (62, 300), (90, 90), (150, 44), (210, 110), (330, 150), (430, 96), (520, 50), (590, 110),
         (700, 230), (860, 300), (1050, 340), (1200, 390), (1250, 480)]
    )
    pen.polygon([*upper, (1250, 500), (70, 500)], fill=(240, 238, 232))
    opening = _curve([(150, 60), (210, 118), (330, 158), (430, 104), (505, 66), (400, 190), (250, 200)])
    pen.polygon(opening, fill=(84, 80, 80))
    toe = _curve([(930, 500), (950, 420), (1060, 372), (1200, 400), (1250, 500)])
    pen.polygon(toe, fill=(214, 212, 206))
    heel = _curve([(70, 500), (64, 330), (86, 140), (190, 200), (250, 330), (300, 500)])
    pen.polygon(heel, fill=(196, 38, 40))
    pen.polygon(_curve([(330, 500), (420, 420), (600, 390), (820, 420), (930, 500)]), fill=(200, 198, 194))
    pen.polygon([(560, 120), (820, 298), (740, 340), (500, 170)], fill=(222, 219, 212))
    for step in range(6):
        x, y = 560 + step * 44, 150 + step * 31
        pen.line((x - 44, y + 50, x + 36, y - 8), fill=(250, 250, 248), width=17)
        pen.line((x - 44, y + 54, x + 36, y - 4), fill=(170, 168, 164), width=4)
    pen.line(_curve([(300, 400), (460, 330), (640, 330), (780, 370)]), fill=(196, 38, 40), width=20)
    sole = _curve([(52, 480), (200, 470), (640, 480), (1000, 470), (1268, 470)])
    pen.polygon([*sole, (1276, 540), (1220, 590), (90, 590), (48, 540)], fill=(250, 249, 246))
    pen.polygon([(60, 566), (1262, 566), (1215, 600), (95, 600)], fill=(48, 46, 48))
    pen.rounded_rectangle((150, 510, 400, 556), 22, fill=(156, 190, 206))
    pen.line([*sole], fill=(168, 166, 160), width=5)
    return _lit(shoe, lambda x, y: 1.06 - 0.26 * y + 0.04 * np.sin(9 * x))


def _brick_box_front(rng: np.random.Generator) -> Image.Image:
    front = Image.new("RGBA", (1400, 1000), (36, 132, 214, 255))
    pen = ImageDraw.Draw(front)
    for y in range(1000):
        pen.line((0, y, 1400, y), fill=(20 + y // 20, 96 + y // 18, 196))
    pen.rectangle((0, 820, 1400, 1000), fill=(92, 168, 62))
    pen.rectangle((60, 50, 370, 300), fill=(212, 28, 32))
    _write(pen, (215, 178), "LEGO", 112, (255, 255, 255), bold=6)
    _write(pen, (610, 130), "CITY", 150, (255, 255, 255), bold=5)
    _write(pen, (190, 640), "60316", 92, (255, 255, 255), bold=3)
    _write(pen, (140, 740), "668 pcs", 46, (255, 255, 255))
    _write(pen, (120, 390), "6+", 84, (255, 255, 255), bold=3)
    colors: Sequence[Color] = ((238, 196, 40), (236, 236, 232), (236, 236, 232), (206, 40, 40), (150, 154, 160))
    left, right, height = 480, 1320, 74
    for row in range(7):
        y = 860 - row * height
        x = left + (row % 2) * 42
        while x < right - 20:
            width = min(int(rng.choice((84, 126, 168))), right - x)
            if not (row in (1, 2, 3) and 800 < x < 980):
                _brick(pen, x, y, width, height, colors[int(rng.integers(len(colors)))])
            x += width
    for step in range(6):
        y = 860 - (7 + step) * 46 - 190
        if left - 20 + step * 70 < right - step * 70:
            _brick(pen, left - 10 + step * 70, y + 46, right - left + 20 - step * 140, 46, (196, 36, 38))
    pen.rectangle((0, 940, 1400, 1000), fill=(238, 196, 40))
    return front


def _brick(pen: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, color: Color) -> None:
    dark, bright = _shade(color, 0.72), _shade(color, 1.12)
    for stud in range(x + 8, x + width - 24, 42):
        pen.rectangle((stud, y - 12, stud + 26, y), fill=_shade(color, 0.9))
    pen.rectangle((x, y, x + width - 2, y + height - 2), fill=color)
    pen.line((x, y, x + width - 2, y), fill=bright, width=5)
    pen.line((x, y + height - 3, x + width - 2, y + height - 3), fill=dark, width=5)
    pen.line((x + width - 3, y, x + width - 3, y + height), fill=dark, width=4)


def _lens(body: Image.Image, center: Point, radius: int, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(body)
    rings = ((1.0, 22), (0.96, 52), (0.9, 30), (0.78, 64), (0.75, 20), (0.66, 12), (0.6, 34), (0.57, 8))
    for share, level in rings:
        _disc(pen, center, radius * share, (level, level, level + 3))
    for step in range(120):
        angle = step * math.tau / 120
        inner, outer = radius * 0.905, radius * 0.955
        pen.line(
            (center[0] + inner * math.cos(angle), center[1] + inner * math.sin(angle),
             center[0] + outer * math.cos(angle), center[1] + outer * math.sin(angle)),
            fill=(24, 24, 27), width=6,
        )
    for share, color in ((0.5, (18, 22, 40)), (0.4, (30, 26, 58)), (0.3, (24, 48, 70)), (0.2, (10, 12, 22))):
        _disc(pen, center, radius * share, color)
    shine = Image.new("RGBA", body.size)
    glow = ImageDraw.Draw(shine)
    glow.ellipse((center[0] - 130, center[1] - 140, center[0] - 40, center[1] - 40), fill=(230, 236, 255, 190))
    glow.ellipse((center[0] + 50, center[1] + 60, center[0] + 100, center[1] + 105), fill=(190, 130, 220, 140))
    body.alpha_composite(shine.filter(ImageFilter.GaussianBlur(12)))


def _knob(body: Image.Image, center: Point, radius: int) -> None:
    pen = ImageDraw.Draw(body)
    for step, level in enumerate((40, 92, 150, 186, 200)):
        _disc(pen, (center[0] - step * 2, center[1] - step * 3), radius - step * 9, (level, level, level + 4))
    pen.line((center[0], center[1] - radius + 50, center[0] + 8, center[1] - 12), fill=(50, 50, 54), width=10)


def _disc(pen: ImageDraw.ImageDraw, center: Point, radius: float, color: Color) -> None:
    pen.ellipse((center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius), fill=color)


def _leather(image: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    grain = Image.fromarray(rng.integers(0, 255, (height // 3, width // 3), dtype=np.uint8)).resize((width, height))
    pixels = np.asarray(grain.filter(ImageFilter.GaussianBlur(2)), dtype=np.float32) / 255
    level = (26 + 34 * (pixels - 0.3)).clip(0, 255).astype(np.uint8)
    patch = Image.merge("RGB", [Image.fromarray(level)] * 3).convert("RGBA")
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), 76, fill=255)
    image.paste(patch, box[:2], mask)


def _write(
    pen: ImageDraw.ImageDraw, center: Point, text: str, size: int, color: Color, *, bold: int = 0
) -> None:
    font = ImageFont.load_default(size=size)
    pen.text(center, text, font=font, fill=color, anchor="mm", stroke_width=bold, stroke_fill=color)


def _curve(points: Sequence[Point], steps: int = 16) -> list[Point]:
    """Return a Catmull-Rom line through the points."""
    ends = [points[0], *points, points[-1]]
    line: list[Point] = []
    for before, start, end, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps):
            line.append((_spline(step / steps, before[0], start[0], end[0], after[0]),
                         _spline(step / steps, before[1], start[1], end[1], after[1])))
    return [*line, points[-1]]


def _spline(t: float, before: float, start: float, end: float, after: float) -> float:
    return 0.5 * (
        2 * start + (end - before) * t + (2 * before - 5 * start + 4 * end - after) * t * t
        + (3 * start - before - 3 * end + after) * t ** 3
    )


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, int(level * factor)) for level in color)
    return red, green, blue


def _lit(image: Image.Image, light: Callable[[Pixels, Pixels], Pixels]) -> Image.Image:
    """Return the image with each pixel's brightness multiplied by light(x, y), both from 0 to 1."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    y, x = np.mgrid[0:1:complex(0, image.height), 0:1:complex(0, image.width)].astype(np.float32)
    pixels[..., :3] *= light(x, y)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _wood(rng: np.random.Generator, color: Color) -> Image.Image:
    width, height = SCENE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    level = np.ones((height, width), dtype=np.float32)
    board = height // 5
    for index in range(5):
        rows = slice(index * board, (index + 1) * board)
        phase, bend, tone = rng.uniform(0, 6), rng.uniform(20, 60), rng.uniform(0.93, 1.05)
        grain = np.sin((y[rows] + bend * np.sin(x[rows] / rng.uniform(300, 700) + phase)) / 6 + phase)
        level[rows] = tone * (1 + 0.035 * grain + 0.02 * np.sin(y[rows] / 2.3 + phase))
        level[index * board:index * board + 5] *= 0.72
    streaks = np.repeat(rng.normal(0, 0.025, (height, width // 60)), 60, axis=1)
    level += np.asarray(Image.fromarray(streaks.astype(np.float32)).resize(SCENE), dtype=np.float32)
    return Image.fromarray((level[..., None] * np.array(color)).clip(0, 255).astype(np.uint8))


def _fabric(rng: np.random.Generator, color: Color) -> Image.Image:
    width, height = SCENE
    coarse = Image.fromarray(rng.normal(0, 1, (height // 4, width // 4)).astype(np.float32)).resize(SCENE)
    patches = Image.fromarray(rng.normal(0, 1, (12, 16)).astype(np.float32)).resize(SCENE, Image.Resampling.BICUBIC)
    level = 1 + 0.035 * np.asarray(coarse) + 0.02 * np.asarray(patches)
    return Image.fromarray((level[..., None] * np.array(color)).clip(0, 255).astype(np.uint8))


def _shadow(scene: Image.Image, outline: Sequence[Point], *, blur: int, opacity: float) -> None:
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).polygon(list(outline), fill=int(255 * opacity))
    scene.paste((18, 15, 14), mask=mask.filter(ImageFilter.GaussianBlur(blur)))


def _place(scene: Image.Image, picture: Image.Image, corners: Sequence[Point]) -> None:
    """Paste the picture so that its corners come to lie on the given ones (from top left, clockwise)."""
    width, height = picture.size
    rows, targets = [], []
    for (x, y), (u, v) in zip(corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        targets += [u, v]
    coefficients = np.linalg.solve(np.array(rows, dtype=float), np.array(targets, dtype=float)).tolist()
    warped = picture.transform(
        scene.size, Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BICUBIC
    )
    scene.paste(warped.convert("RGB"), mask=warped.getchannel("A"))


def _photo(scene: Image.Image, rng: np.random.Generator, *, light: Point, falloff: float, tilt: float) -> Image.Image:
    """Return the scene as a hand-held phone takes it. light: where the lamp stands, both from 0 to 1."""
    turned = scene.rotate(tilt, resample=Image.Resampling.BICUBIC)
    margin = int(abs(math.sin(math.radians(tilt))) * max(scene.size))
    cut = turned.crop((margin, margin, scene.width - margin, scene.height - margin))
    size = PHOTO if scene.width > scene.height else PHOTO[::-1]
    shot = cut.resize(size, Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.7))
    lit = _lit(shot, lambda x, y: 1.12 - falloff * np.hypot(x - light[0], y - light[1]) ** 1.5)
    pixels = np.asarray(lit, dtype=np.float32) * np.array((1.02, 1.0, 0.95), dtype=np.float32)
    pixels += rng.normal(0, 2.2, (*pixels.shape[:2], 1)).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_all(folder: Path) -> None:
    """Write all pictures into the folder."""
    upright = {"camera": draw_camera, "lego": draw_bricks, "other": draw_radio, "bare-sneaker": draw_bare_sneaker}
    for name, draw in upright.items():
        draw().save(folder / f"{name}.jpg", quality=JPEG_QUALITY)
    # Phones do not turn the pixels: they write which way up the picture is meant.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sideways = draw_sneaker().transpose(Image.Transpose.ROTATE_90)
    sideways.save(folder / "sneaker.jpg", quality=JPEG_QUALITY, exif=exif)


if __name__ == "__main__":
    write_all(Path(__file__).parents[2] / "pipeline" / "demo")
