"""Puts a drawn product in front of a background, as a phone or a studio would photograph it.

Everything is drawn by code from seeded numbers: the same name gives the same picture. Needs Pillow and numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]
Pixels = NDArray[Any]

SIZE = (1000, 750)


def write(
    image: Image.Image, center: tuple[float, float], text: str, size: int, color: Color, *, bold: int = 0
) -> None:
    """Write one line of text around the center."""
    font = ImageFont.load_default(size=size)
    pen = ImageDraw.Draw(image)
    pen.text(center, text, font=font, fill=color, anchor="mm", stroke_width=bold, stroke_fill=color)


def write_around(
    image: Image.Image, center: tuple[float, float], radius: float, text: str, size: int, color: Color
) -> None:
    """Write the text along the upper half of a circle, as lens makers do."""
    font = ImageFont.load_default(size=size)
    widths = [font.getlength(char) + 0.12 * size for char in text]
    angle = -np.degrees(sum(widths) / radius) / 2
    for char, width in zip(text, widths, strict=True):
        angle += np.degrees(width / radius) / 2
        letter = Image.new("RGBA", (4 * size, 4 * size))
        ImageDraw.Draw(letter).text((2 * size, 2 * size), char, font=font, fill=color, anchor="mm")
        turned = letter.rotate(-angle, resample=Image.Resampling.BICUBIC)
        x = center[0] + radius * np.sin(np.radians(angle))
        y = center[1] - radius * np.cos(np.radians(angle))
        image.alpha_composite(turned, (round(x - 2 * size), round(y - 2 * size)))
        angle += np.degrees(width / radius) / 2


def shade(color: Color, factor: float) -> Color:
    """Return the colour brighter or darker."""
    red, green, blue = (max(0, min(255, round(level * factor))) for level in color)
    return red, green, blue


def lit(image: Image.Image, light: Callable[[Pixels, Pixels], Pixels]) -> Image.Image:
    """Return the image with each pixel's brightness multiplied by light(x, y), both from 0 to 1."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    y, x = np.mgrid[0 : 1 : complex(0, image.height), 0 : 1 : complex(0, image.width)].astype(np.float32)
    pixels[..., :3] *= light(x, y)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def white(rng: np.random.Generator) -> Image.Image:
    """A studio: white paper, a trace darker to one side."""
    level = int(rng.integers(247, 256))
    return lit(Image.new("RGB", SIZE, (level, level, level)), lambda x, y: 1 - 0.02 * x)


def grey(rng: np.random.Generator) -> Image.Image:
    """A studio: grey paper that gets darker upwards."""
    level = int(rng.integers(120, 190))
    return lit(Image.new("RGB", SIZE, (level, level, level + 2)), lambda x, y: 0.8 + 0.3 * y)


def wood(rng: np.random.Generator) -> Image.Image:
    """A table of boards."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    phase = float(rng.uniform(0, 6))
    level = 1 + 0.04 * np.sin((y + 20 * np.sin(x / 150 + phase)) / 4) + 0.03 * np.sin(y / 37 + phase)
    level[y % 150 < 3] *= 0.8
    color = np.array([(176, 132, 92), (205, 180, 150), (120, 84, 58)][int(rng.integers(3))])
    return Image.fromarray((level[..., None] * color).clip(0, 255).astype(np.uint8))


def cloth(rng: np.random.Generator) -> Image.Image:
    """A carpet or a blanket of one colour."""
    grain = Image.fromarray(rng.normal(0, 1, (SIZE[1] // 2, SIZE[0] // 2)).astype(np.float32)).resize(SIZE)
    color = np.array([(150, 152, 156), (200, 192, 180), (96, 104, 120), (128, 60, 56)][int(rng.integers(4))])
    level = 1 + 0.04 * np.asarray(grain)
    return Image.fromarray((level[..., None] * color).clip(0, 255).astype(np.uint8))


def room(rng: np.random.Generator) -> Image.Image:
    """A shelf full of things, a little out of focus."""
    scene = Image.new("RGB", SIZE, (168, 152, 132))
    pen = ImageDraw.Draw(scene)
    for shelf in range(3):
        bottom, x = 230 + shelf * 240, -20
        while x < SIZE[0]:
            width, height = int(rng.integers(18, 90)), int(rng.integers(80, 210))
            color = _any_color(rng, 20, 240)
            pen.rectangle((x, bottom - height, x + width, bottom), fill=color)
            pen.rectangle((x, bottom - height // 2, x + width, bottom - height // 2 + 8), fill=shade(color, 0.6))
            x += width + int(rng.integers(0, 12))
        pen.rectangle((0, bottom, SIZE[0], bottom + 14), fill=(92, 66, 46))
    return scene.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 4))))


def outside(rng: np.random.Generator) -> Image.Image:
    """Sky, hills and a street."""
    scene = lit(Image.new("RGB", SIZE, (150, 190, 230)), lambda x, y: 0.9 + 0.3 * y)
    pen = ImageDraw.Draw(scene)
    for far, color in enumerate(((110, 130, 150), (84, 108, 84), (60, 84, 52))):
        points = [(x, 220 + far * 110 + int(rng.integers(-90, 60))) for x in range(0, SIZE[0] + 100, 100)]
        pen.polygon([*points, (SIZE[0], SIZE[1]), (0, SIZE[1])], fill=color)
    pen.polygon([(0, 750), (0, 640), (1000, 600), (1000, 750)], fill=(96, 94, 92))
    for x in range(60, 1000, 170):
        pen.rectangle((x, 330, x + int(rng.integers(30, 120)), 640), fill=_any_color(rng, 60, 200))
    return scene.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3))))


def brick(rng: np.random.Generator) -> Image.Image:
    """A wall of bricks."""
    scene = Image.new("RGB", SIZE, (186, 180, 172))
    pen = ImageDraw.Draw(scene)
    for row in range(0, 14):
        for column in range(-1, 8):
            x, y, level = column * 150 + row % 2 * 75, row * 56, float(rng.uniform(0.75, 1.15))
            pen.rectangle((x + 4, y + 4, x + 145, y + 51), fill=shade((158, 74, 56), level))
    return scene.filter(ImageFilter.GaussianBlur(1.5))


def marble(rng: np.random.Generator) -> Image.Image:
    """A pale worktop with grey veins."""
    scene = Image.new("RGB", SIZE, (226, 225, 222))
    pen = ImageDraw.Draw(scene)
    for _ in range(9):
        x, y = float(rng.uniform(0, SIZE[0])), 0.0
        while y < SIZE[1]:
            end = x + float(rng.uniform(-70, 60)), y + float(rng.uniform(20, 70))
            pen.line((x, y, *end), fill=(176, 176, 178), width=int(rng.integers(2, 9)))
            x, y = end
    return scene.filter(ImageFilter.GaussianBlur(5))


def grass(rng: np.random.Generator) -> Image.Image:
    """A lawn from above."""
    scene = Image.new("RGB", SIZE, (58, 98, 42))
    pen = ImageDraw.Draw(scene)
    for _ in range(6000):
        x, y = int(rng.integers(SIZE[0])), int(rng.integers(SIZE[1]))
        tip = x + int(rng.integers(-9, 10)), y - int(rng.integers(10, 30))
        pen.line((x, y, *tip), fill=shade((84, 136, 52), float(rng.uniform(0.5, 1.3))), width=2)
    return scene.filter(ImageFilter.GaussianBlur(0.8))


def tiles(rng: np.random.Generator) -> Image.Image:
    """A kitchen floor, blue and white."""
    scene = Image.new("RGB", SIZE, (214, 214, 208))
    pen = ImageDraw.Draw(scene)
    for row in range(6):
        for column in range(8):
            if (row + column) % 2:
                pen.rectangle((column * 130, row * 130, column * 130 + 129, row * 130 + 129), fill=(104, 128, 152))
    return scene.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))


def leather(rng: np.random.Generator) -> Image.Image:
    """A dark brown sofa."""
    grain = Image.fromarray(rng.normal(0, 1, (SIZE[1] // 5, SIZE[0] // 5)).astype(np.float32)).resize(SIZE)
    level = 1 + 0.12 * np.asarray(grain)
    return Image.fromarray((level[..., None] * np.array((74, 48, 38))).clip(0, 255).astype(np.uint8))


def _any_color(rng: np.random.Generator, low: int, high: int) -> Color:
    red, green, blue = map(int, rng.integers(low, high, 3))
    return red, green, blue


BACKGROUNDS = {
    each.__name__: each for each in (white, grey, wood, cloth, room, outside, brick, marble, grass, tiles, leather)
}


def photograph(
    product: Image.Image, background: str, rng: np.random.Generator, *, width: float = 0.62, light: float = 1.0
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return the photo, and where the product is in it.

    product: RGBA.
    width: of the product, as a share of the photo's.
    light: 1 is a bright room, 0.3 a dark one.
    """
    scene = BACKGROUNDS[background](rng)
    scale = min(width * SIZE[0] / product.width, 0.78 * SIZE[1] / product.height)
    small = product.resize((round(product.width * scale), round(product.height * scale)), Image.Resampling.LANCZOS)
    turned = small.rotate(float(rng.uniform(-3, 3)), resample=Image.Resampling.BICUBIC, expand=True)
    left = round((SIZE[0] - turned.width) * rng.uniform(0.35, 0.65))
    top = round((SIZE[1] - turned.height) * rng.uniform(0.4, 0.65))
    alpha = Image.new("L", SIZE)
    alpha.paste(turned.getchannel("A"), (left, top))
    ground = Image.new("L", SIZE)
    ImageDraw.Draw(ground).ellipse(
        (left + 0.03 * turned.width, top + turned.height - 26, left + 0.99 * turned.width, top + turned.height + 16),
        fill=110 if background == "white" else 150,
    )
    scene.paste((20, 18, 18), mask=ground.filter(ImageFilter.GaussianBlur(14)))
    scene.paste(turned.convert("RGB"), (left, top), turned.getchannel("A"))
    return _exposed(scene, rng, light, background == "white"), np.asarray(alpha) > 127


def _exposed(scene: Image.Image, rng: np.random.Generator, light: float, is_studio: bool) -> Image.Image:
    corner = float(rng.uniform(0, 1))
    fall = 0.0 if is_studio else 0.25
    shot = lit(scene, lambda x, y: light * (1.05 - fall * np.hypot(x - corner, y - 0.2) ** 1.5))
    shot = shot.filter(ImageFilter.GaussianBlur(0.6))
    pixels = np.asarray(shot, dtype=np.float32) + rng.normal(0, 1.5, (SIZE[1], SIZE[0], 1)).astype(np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
