"""Draws products without a background: cameras, shoes, boxes, devices, phones and laptops, bottles. See scenes.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter

from benchmarks.recognition.scenes import Color, lit, shade, write, write_around

BLACK, WHITE, PALE = (30, 30, 33), (245, 245, 243), (232, 232, 230)


def camera(
    brand: str = "", model: str = "", lens: str = "", *, color: Color = BLACK, size: int = 62, note: str = ""
) -> Image.Image:
    """A camera from the front.

    lens: lettering around its lens.
    note: small print below.
    """
    body = Image.new("RGBA", (1000, 720))
    pen = ImageDraw.Draw(body)
    pen.polygon([(330, 150), (390, 24), (610, 24), (670, 150)], fill=shade(color, 1.1))
    pen.rounded_rectangle((700, 90, 820, 170), 18, fill=shade(color, 1.2))
    pen.rounded_rectangle((30, 130, 970, 700), 60, fill=color)
    pen.rounded_rectangle((30, 130, 970, 230), 46, fill=shade(color, 1.25))
    body = lit(body, lambda x, y: 1.15 - 0.35 * y)
    _lens(body, (480, 460), 205, lens)
    ink = WHITE if sum(color) < 380 else (24, 24, 26)
    write(body, (490, 120), brand, size, ink, bold=size // 26)
    write(body, (835, 195), model, round(size * 0.72), ink, bold=size // 40)
    write(body, (180, 670), note, 22, ink)
    return body


def _lens(body: Image.Image, center: tuple[float, float], radius: float, text: str) -> None:
    pen = ImageDraw.Draw(body)
    for share, level in ((1.0, 24), (0.97, 58), (0.93, 30), (0.62, 16), (0.58, 40), (0.55, 12), (0.4, 34), (0.25, 60)):
        x, y, r = *center, radius * share
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(level, level, level + 4))
    for step in range(90):
        angle = step * math.tau / 90
        inner, outer = radius * 0.94, radius * 0.99
        pen.line(
            [(center[0] + r * math.cos(angle), center[1] + r * math.sin(angle)) for r in (inner, outer)],
            fill=(20, 20, 22), width=3,
        )
    shine = Image.new("RGBA", body.size)
    ImageDraw.Draw(shine).ellipse(
        (center[0] - 70, center[1] - 80, center[0] - 20, center[1] - 30), fill=(230, 236, 255, 170)
    )
    body.alpha_composite(shine.filter(ImageFilter.GaussianBlur(8)))
    if text:
        write_around(body, center, radius * 0.77, text, 30, WHITE)


def shoe(
    color: Color, accent: Color = (196, 38, 40), text: str = "", *, sole: Color = (244, 243, 240), size: int = 46
) -> Image.Image:
    """A low shoe from the side. text: on its flank."""
    image = Image.new("RGBA", (1300, 640))
    pen = ImageDraw.Draw(image)
    upper = _curve(
        [(70, 480), (62, 300), (90, 90), (150, 44), (210, 110), (330, 150), (430, 96), (520, 50), (590, 110),
         (700, 230), (860, 300), (1050, 340), (1200, 390), (1250, 480)]
    )
    pen.polygon([*upper, (1250, 510), (70, 510)], fill=color)
    pen.polygon(_curve([(150, 60), (210, 118), (330, 158), (430, 104), (505, 66), (400, 190), (250, 200)]),
                fill=shade(color, 0.45))
    pen.polygon(_curve([(930, 505), (950, 420), (1060, 372), (1200, 400), (1250, 505)]), fill=shade(color, 0.9))
    pen.polygon(_curve([(70, 505), (64, 330), (86, 140), (150, 200), (170, 330), (190, 505)]), fill=accent)
    for step in range(6):
        x, y = 560 + step * 44, 150 + step * 31
        pen.line((x - 44, y + 50, x + 36, y - 8), fill=(250, 250, 248), width=15)
        pen.line((x - 44, y + 54, x + 36, y - 4), fill=(170, 168, 164), width=4)
    ground = _curve([(52, 490), (200, 478), (640, 488), (1000, 478), (1268, 480)])
    pen.polygon([*ground, (1276, 560), (1220, 606), (90, 606), (48, 560)], fill=sole)
    pen.polygon([(60, 584), (1262, 584), (1215, 616), (95, 616)], fill=(60, 58, 60))
    write(image, (480, 380), text, size, accent if sum(accent) < sum(color) else (30, 30, 32), bold=2)
    return lit(image, lambda x, y: 1.04 - 0.2 * y)


def _curve(points: Sequence[tuple[float, float]], steps: int = 14) -> list[tuple[float, float]]:
    """Return a Catmull-Rom line through the points."""
    ends = [points[0], *points, points[-1]]
    line = []
    for before, start, end, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps):
            t = step / steps
            line.append((_spline(t, before[0], start[0], end[0], after[0]),
                         _spline(t, before[1], start[1], end[1], after[1])))
    return [*line, points[-1]]


def _spline(t: float, before: float, start: float, end: float, after: float) -> float:
    return 0.5 * (
        2 * start + (end - before) * t + (2 * before - 5 * start + 4 * end - after) * t * t
        + (3 * start - before - 3 * end + after) * t**3
    )


def box(color: Color, lines: Sequence[tuple[str, int]], *, ink: Color = WHITE, bricks: bool = False) -> Image.Image:
    """The front of a box.

    lines: (text, size) from top to bottom.
    bricks: with a picture of a house on it.
    """
    image = Image.new("RGBA", (1000, 720), (*color, 255))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 999, 26), fill=shade(color, 0.8))
    if bricks:
        for row in range(5):
            for column in range(6):
                left, top = 520 + column * 70 + row % 2 * 30, 610 - row * 62
                fill = ((240, 196, 40), (236, 236, 232), (206, 40, 40))[(row * 2 + column) % 3]
                pen.rectangle((left, top, left + 66, top + 58), fill=fill)
                pen.rectangle((left + 12, top - 10, left + 50, top), fill=shade(fill, 0.9))
    y = 130.0 - (60 if bricks else 0)
    for text, size in lines:
        y += size * 0.75
        write(image, (300 if bricks else 500, y), text, size, ink, bold=size // 30)
        y += size * 0.75
    return lit(image, lambda x, y: 1.05 - 0.15 * x)


def device(
    color: Color, brand: str = "", model: str = "", notes: Sequence[str] = (), *, size: int = 80
) -> Image.Image:
    """A box with a loudspeaker: a radio, say. notes: small print."""
    image = Image.new("RGBA", (1000, 620))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((10, 10, 990, 610), 50, fill=color)
    image = lit(image, lambda x, y: 1.12 - 0.3 * y)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((50, 60, 480, 560), 30, fill=shade(color, 0.35))
    for y in range(84, 545, 24):
        for x in range(74, 465, 24):
            pen.ellipse((x, y, x + 11, y + 11), fill=shade(color, 0.2))
    for x in (620, 860):
        pen.ellipse((x - 62, 430, x + 62, 554), fill=(150, 150, 154))
        pen.ellipse((x - 46, 442, x + 46, 534), fill=(200, 200, 204))
    ink = WHITE if sum(color) < 420 else (24, 24, 26)
    write(image, (735, 120), brand, size, ink, bold=size // 28)
    write(image, (735, 230), model, round(size * 0.6), ink, bold=1)
    for row, text in enumerate(notes):
        write(image, (735, 300 + 36 * row), text, 26, ink)
    return image


def screen(lines: Sequence[tuple[str, int]], *, name: str = "", phone: bool = False) -> Image.Image:
    """A laptop's display or a phone that shows a page. name: on the frame below it."""
    width, height = (420, 800) if phone else (1100, 760)
    image = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), 40 if phone else 18, fill=(22, 22, 24))
    pen.rectangle((22, 40, width - 22, height - 70), fill=(252, 252, 254))
    pen.rectangle((22, 40, width - 22, 92), fill=(222, 226, 234))
    address = "www.example.com" if phone else "https://www.example.com/search?q=news"
    write(image, (width / 2, 66), address, 26, (90, 90, 96))
    y = 120.0
    for text, size in lines:
        y += size * 0.7
        write(image, (width / 2, y), text, size, (40, 70, 190) if size > 40 else (50, 50, 54), bold=size // 40)
        y += size * 0.7 + 8
    write(image, (width / 2, height - 34), name, 32, (214, 214, 216), bold=1)
    return image


def phone_back(color: Color, brand: str = "", lens: str = "") -> Image.Image:
    """A phone from behind, whose camera block names the maker of its lens."""
    image = Image.new("RGBA", (460, 900))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, 459, 899), 60, fill=color)
    image = lit(image, lambda x, y: 1.1 - 0.2 * y)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((40, 40, 420, 300), 50, fill=shade(color, 0.7))
    for x in (130, 330):
        pen.ellipse((x - 62, 70, x + 62, 194), fill=(16, 16, 20))
        pen.ellipse((x - 30, 102, x + 30, 162), fill=(40, 44, 70))
    ink = WHITE if sum(color) < 420 else (24, 24, 26)
    write(image, (230, 250), lens, 40, ink, bold=1)
    write(image, (230, 780), brand, 54, ink, bold=2)
    return image


def bottle(color: Color, text: str = "") -> Image.Image:
    """A bottle with a white cap."""
    image = Image.new("RGBA", (340, 900))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((110, 6, 230, 110), 20, fill=(228, 228, 226))
    pen.polygon([(120, 100), (220, 100), (320, 260), (320, 860), (20, 860), (20, 260)], fill=color)
    pen.rounded_rectangle((20, 800, 320, 894), 40, fill=color)
    write(image, (170, 480), text, 54, WHITE if sum(color) < 420 else (24, 24, 26), bold=2)
    return lit(image, lambda x, y: 1.08 - 0.3 * abs(x - 0.45))
