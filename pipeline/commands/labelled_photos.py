"""Photos with known contents for `eval`: assets that people have corrected, or a folder with a list."""

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
    """One photo and its known contents.

    name: of the asset or file.
    truth: field -> the value that people have given; unknown fields are missing.
    url: where the photo can be fetched, "" when nowhere.
    read: returns its bytes; raises OSError when they cannot be read.
    """

    name: str
    category: str
    content_type: str
    truth: Mapping[str, str]
    url: str
    read: Callable[[], Awaitable[bytes]]


async def corrected(backends: Backends, category: str | None, limit: int) -> list[Case]:
    """Return the newest assets that have corrections and still have their original.

    category: only of this one; None: of all.
    limit: at most so many.
    """
    cases: list[Case] = []
    async for asset in _assets(backends, category):
        if asset.corrections and asset.original.name is not None:
            cases.append(await _case(asset, backends))
            if len(cases) == limit:
                break
    return cases


def labelled(folder: Path, categories: Collection[str], category: str | None, limit: int) -> list[Case]:
    """Return the photos that the folder's labels.csv names; ConfigurationError names a wrong line and its fault.

    categories: the allowed ones.
    category: only photos of this one; None: of all.
    limit: at most so many.
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


async def _assets(backends: Backends, category: str | None) -> AsyncIterator[Asset]:
    after = None
    while True:
        page = await backends.store.jobs(JobFilter(category=category), limit=PAGE, after=after)
        for asset in page.assets:
            yield asset
        if (after := page.next_after) is None:
            return


async def _case(asset: Asset, backends: Backends) -> Case:
    name = asset.original.name
    assert name is not None
    url = (await backends.storages.urls([name], URL_SECONDS)).get(name) or asset.original.url
    truth = {field: str(each["value"]) for field, each in asset.corrections.items()}
    read = partial(backends.storages.read, name)
    return Case(asset.id, asset.category, asset.original.content_type, truth, url, read)


def _read(photo: Path) -> bytes:
    with photo.open("rb") as file:
        content = file.read(MAX_PHOTO_BYTES + 1)
    if len(content) > MAX_PHOTO_BYTES:
        raise OSError(f"it has more than {MAX_PHOTO_BYTES} bytes")
    return content
