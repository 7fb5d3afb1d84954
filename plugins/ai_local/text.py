"""Reads the lettering in a picture, and decides by it which rotation is upright.

RapidOCR (PP-OCR models on onnxruntime) with the models in its own wheel; nothing is downloaded. Knows no brands. Runs
in a child.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Transpose
from rapidocr import RapidOCR

from pipeline.errors import ConfigurationError
from .line import Line

FIND_AT_PIXELS = 960  # text is located at this size, read at full size: a third of the time, the same words
MIN_SCORE = 0.5  # below this the letters are guesses
IS_LEGIBLE = 0.9  # upright lettering scores 0.95 and more, upside down 0.6 to 0.85
# A rotation must make legible: so many ASCII letters in lines of that length, and so many times those without it.
MIN_LETTERS, MIN_LENGTH, TIMES_UPRIGHT = 6, 3, 2


class TextReader:
    """The OCR engine. The models (31 MB) are loaded by the first picture, not at start."""

    def __init__(self, threads: int) -> None:
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.text_score": 0.0,
                "Global.use_cls": False,  # it would rotate upside-down lines silently, hidden from read_upright
                "Det.model_path": _model("det"),
                "Det.limit_type": "max",
                "Det.limit_side_len": FIND_AT_PIXELS,
                "Rec.model_path": _model("rec"),
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, photo: Image.Image) -> list[Line]:
        """Return every line, from top to bottom, sure or not."""
        result: Any = self._engine(np.asarray(photo)[:, :, ::-1])
        if result.txts is None:
            return []
        lines = zip(result.txts, result.scores, result.boxes, strict=True)
        return [Line(text, float(score), box) for text, score, box in lines]


def read_upright(photo: Image.Image, reader: TextReader, deadline: float) -> tuple[Transpose | None, list[Line]]:
    """Return the rotation that brings most of the lettering upright, if any, and the legible lines after it.

    A picture is rotated only when that makes a word or two surely legible: many textures look like one glyph when they
    are rotated.

    deadline: on the monotonic clock, in seconds; after it no further rotation is tried.
    """
    best, lines = None, reader.read(photo)
    legible = _legible_letters(lines)
    is_sideways = 2 * _letters(lines, upended=True) > _letters(lines)
    turns = (Transpose.ROTATE_90, Transpose.ROTATE_270) if is_sideways else (Transpose.ROTATE_180,)
    needed = max(MIN_LETTERS, TIMES_UPRIGHT * legible)
    for turn in turns if lines and not _is_upright(lines) else ():
        if monotonic() > deadline:
            break
        turned_lines = reader.read(photo.transpose(turn))
        if (letters := _legible_letters(turned_lines)) >= needed:
            best, lines, needed = turn, turned_lines, letters + 1
    return best, [line for line in lines if line.score >= (IS_LEGIBLE if line.is_upended else MIN_SCORE)]


def _is_upright(lines: list[Line]) -> bool:
    """Return True when so much is legible that no rotation needs to be tried."""
    upright = [line for line in lines if not line.is_upended]
    read = sum(line.score * len(line.text) for line in upright)
    return 2 * _letters(upright) >= _letters(lines) and read >= IS_LEGIBLE * _letters(upright)


def _legible_letters(lines: list[Line]) -> int:
    """Return how many letters of upright lines are surely legible."""
    sure = (line for line in lines if not line.is_upended and line.score >= IS_LEGIBLE and len(line.text) >= MIN_LENGTH)
    return sum(char.isascii() and char.isalpha() for line in sure for char in line.text)


def _letters(lines: list[Line], *, upended: bool = False) -> int:
    return sum(len(line.text) for line in lines if line.is_upended or not upended)


def _model(task: str) -> str:
    # With the name of a file RapidOCR does not download one.
    models = sorted(Path(str(files("rapidocr"))).glob(f"models/*_{task}_*.onnx"))
    if not models:
        raise ConfigurationError(f"rapidocr came without its {task} model: reinstall rapidocr, or set AI_SERVICE_URL")
    return str(models[0])
