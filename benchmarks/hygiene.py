"""The cost to remove a photo's metadata: python -m benchmarks.hygiene

Photos of three sizes in each format, with EXIF and XMP where the format has them. As in the service, a small photo is
in memory and a large one in an unnamed file. Prints for each photo the milliseconds of wall time and of processor time:
for the check of the image alone, and for the check, the cleaning and the check of the clean copy. Medians of RUNS runs.
"""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import BinaryIO

from PIL import Image

from benchmarks.machine import describe
from pipeline.handlers.intake import Intake
from pipeline.handlers.multipart import SPOOL_BYTES, nameless_file
from tests.pictures import encode
from tests.private_pictures import exif, xmp

MEGABYTES = (0.1, 2, 10)
RUNS = 15
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")


def photo(format: str, megabytes: float) -> bytes:
    """Return a photo of about that size: noise, so that few pixels are enough."""
    options = {"exif": exif()} if format != "GIF" else {"comment": b"whose it is"}
    if format in ("JPEG", "WEBP", "AVIF", "HEIF"):
        options |= {"quality": 95, "xmp": xmp()}  # type: ignore[dict-item]
    if format == "AVIF":
        options |= {"speed": 10}  # type: ignore[dict-item]

    def drawn(side: int) -> bytes:
        noise = [Image.effect_noise((side, side), 90) for _ in range(3)]
        picture = Image.merge("RGB", noise).convert("P" if format == "GIF" else "RGB")
        return encode(picture, format, **options)

    side = 256
    each = len(drawn(side)) / side**2
    return drawn(int((megabytes * 1024 * 1024 * 0.98 / each) ** 0.5))


def cost(clean: Callable[[BinaryIO], BinaryIO], content: bytes, folder: Path) -> tuple[float, float]:
    """Return the median milliseconds of wall time and of processor time."""
    wall, processor = [], []
    for _ in range(RUNS):
        sent: BinaryIO = io.BytesIO() if len(content) <= SPOOL_BYTES else nameless_file(folder)
        with sent:
            sent.write(content)
            sent.seek(0)
            wall_before, processor_before = perf_counter(), process_time()
            stored = clean(sent)
            wall.append(perf_counter() - wall_before)
            processor.append(process_time() - processor_before)
            stored.close()
    return statistics.median(wall) * 1000, statistics.median(processor) * 1000


def main() -> None:
    """Print the table."""
    print(describe())
    print("\n| format | MB | stored MB | check alone: wall, processor ms | with cleaning: wall, processor ms |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        as_sent, clean = (Intake(200_000_000, 4096, keeps, folder) for keeps in (True, False))
        for format in FORMATS:
            for megabytes in MEGABYTES:
                content = photo(format, megabytes)
                _, image, _ = clean.accept(io.BytesIO(content))
                shown = []
                for each in (as_sent, clean):
                    shown.append("%.2f, %.2f" % cost(lambda sent: each.accept(sent)[0], content, folder))
                sizes = f"{len(content) / 1024**2:.2f} | {image.bytes / 1024**2:.2f}"
                print(f"| {format} | {sizes} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
