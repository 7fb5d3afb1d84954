"""Where `eval` gets photos of which is known what they show: assets that people corrected, or a folder with a list."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.assets.asset import CORRECTABLE, Asset
from pipeline.assets.job_search import JobFilter
from pipeline.assets.kinds import HEAD_BYTES, image_type
from pipeline.commands.moving import Backends
from pipeline.errors import ConfigurationError
from pipeline.texts import clean

PAGE = 500
URL_SECONDS = 3600
LABELS = "labels.csv"
MAX_PHOTO_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One photo and what it shows.

    name: of the asset or file. truth: field -> what people say it is; fields of which nothing is known are not in it.
    url: where the photo can be fetched, "" when nowhere. read: returns its bytes; OSError when they cannot be had.
    """

    name: str
    category: str
    content_type: str
    truth: Mapping[str, str]
    url: str
    read: Callable[[], Awaitable[bytes]]


async def corrected(open_backends: Backends, category: str | None, limit: int) -> list[Case]:
    """Return the newest assets with corrections, and with an original that is still kept, at most so many.

    What a person said is the truth, be it other than what the AI had said or the same.
    """
    cases: list[Case] = []
    async for asset in _assets(open_backends, category):
        if asset.corrections and asset.original.name is not None:
            cases.append(await _case(asset, open_backends))
            if len(cases) == limit:
                break
    return cases


def labelled(folder: Path, categories: Collection[str], category: str | None, limit: int) -> list[Case]:
    """Return the photos that the folder's labels.csv names, at most so many; ConfigurationError says what is wrong in
    which line. categories: those that photos may be of.
    """
    path = folder / LABELS
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"file", "category"} - set(rows.fieldnames or ())
            if missing or not set(CORRECTABLE) & set(rows.fieldnames or ()):
                needed = f"file,category and some of {','.join(CORRECTABLE)}"
                raise ConfigurationError(f"{path}: the first line must name the columns {needed}")
            cases = list(_labels(folder, path, rows, categories))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return [case for case in cases if category in (None, case.category)][:limit]


def _labels(folder: Path, path: Path, rows: Any, categories: Collection[str]) -> Iterator[Case]:
    for row in rows:
        texts = {name: clean(text).strip() for name, text in row.items() if isinstance(name, str) and text}
        photo = folder / texts.get("file", "")
        if not photo.is_file():
            raise ConfigurationError(f"{path}, line {rows.line_num}: there is no file {texts.get('file', '')!r}")
        if (category := texts.get("category", "")) not in categories:
            known = ", ".join(categories)
            raise ConfigurationError(f"{path}, line {rows.line_num}: the category {category!r} is none of {known}")
        with photo.open("rb") as file:
            content_type = image_type(file.read(HEAD_BYTES)) or ""
        truth = {name: texts[name] for name in CORRECTABLE if name in texts}
        if truth:
            yield Case(texts["file"], category, content_type, truth, "", partial(asyncio.to_thread, _read, photo))


async def _assets(open_backends: Backends, category: str | None) -> AsyncIterator[Asset]:
    after = None
    while True:
        page = await open_backends.store.jobs(JobFilter(category=category), limit=PAGE, after=after)
        for asset in page.assets:
            yield asset
        if (after := page.next_after) is None:
            return


async def _case(asset: Asset, open_backends: Backends) -> Case:
    name = asset.original.name
    assert name is not None
    url = (await open_backends.storages.urls([name], URL_SECONDS)).get(name) or asset.original.url
    truth = {field: str(each["value"]) for field, each in asset.corrections.items()}
    read = partial(open_backends.storages.read, name)
    return Case(asset.id, asset.category, asset.original.content_type, truth, url, read)


def _read(photo: Path) -> bytes:
    with photo.open("rb") as file:
        content = file.read(MAX_PHOTO_BYTES + 1)
    if len(content) > MAX_PHOTO_BYTES:
        raise OSError(f"it has more than {MAX_PHOTO_BYTES} bytes")
    return content
