"""The attributes by which an AI provider declares its limits: categories, image formats, rate, calls at once. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from pipeline.hold import Pace
from pipeline.hooks.provider_protocol import Rate

# The formats of images, by the names that providers use.
FORMATS = {name: f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "avif", "heic")}
JPEG = "image/jpeg"
SEES_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one provider; None: no limit.

    categories: the categories it is asked about.
    content_types: of the images it accepts.
    max_in_flight: how many of its calls may run at once, in all processes together.
    rate: how often it may be called, by all processes together.
    extra_fields: the validator of each field that its `extra` may have.
    """

    categories: frozenset[str] | None = None
    content_types: frozenset[str] | None = None
    max_in_flight: int | None = None
    rate: Rate | None = None
    extra_fields: Mapping[str, Draft202012Validator] | None = None

    @property
    def pace(self) -> Pace | None:
        """How often and how many at once it may be called; None: no limit."""
        if self.rate is None and self.max_in_flight is None:
            return None
        return Pace(self.rate.interval_seconds if self.rate else 0, self.max_in_flight)

    def takes(self, category: str) -> bool:
        """Return whether the provider is asked about photos of that category."""
        return self.categories is None or category in self.categories

    def takes_type(self, content_type: str) -> bool:
        """Return whether the provider takes images of that type."""
        return self.content_types is None or content_type in self.content_types

    def split_extra(self, extra: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the allowed fields and, in words, the faults of the others."""
        if self.extra_fields is None:
            return dict(extra), []
        allowed, faults = {}, []
        for name, value in extra.items():
            fault = _extra_fault(name, value, self.extra_fields)
            if fault:
                faults.append(fault)
            else:
                allowed[name] = value
        return allowed, faults


@dataclass(frozen=True, slots=True)
class Declared:
    """The limits that a plugin declares, and the faults of the declaration in words."""

    limits: Limits = Limits()
    faults: list[str] = field(default_factory=list)


def declared_by(plugin: object) -> Declared:
    """Return the limits in the attributes of a provider."""
    faults = [*_faults(plugin)]
    if faults:
        return Declared(faults=faults)
    categories, formats = getattr(plugin, "categories", None), getattr(plugin, "image_formats", None)
    return Declared(
        Limits(
            None if categories is None else frozenset(categories),
            None if formats is None else frozenset(FORMATS[name] for name in formats),
            getattr(plugin, "max_in_flight", None),
            getattr(plugin, "rate", None),
            validators(getattr(plugin, "extra_fields", None)),
        )
    )


def sees_of(plugin: object) -> str:
    """Return what an AI provider declares that it can and cannot see, "" when it declares nothing."""
    sees = getattr(plugin, "sees", "")
    return sees[:SEES_LENGTH] if isinstance(sees, str) else ""


def validators(schemas: Mapping[str, Any] | None) -> Mapping[str, Draft202012Validator] | None:
    """Return the validator of each field of `extra`."""
    return None if schemas is None else {name: Draft202012Validator(schema) for name, schema in schemas.items()}


def extra_fields_faults(schemas: object) -> Iterator[str]:
    """Yield the faults of `extra_fields`."""
    if schemas is None:
        return
    if not isinstance(schemas, Mapping) or not all(isinstance(name, str) for name in schemas):
        yield "extra_fields is no mapping of names to JSON schemas"
        return
    for name, schema in schemas.items():
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            yield f"extra_fields[{name!r}] is no JSON schema: {error.message}"


def _faults(plugin: object) -> Iterator[str]:
    categories, formats = getattr(plugin, "categories", None), getattr(plugin, "image_formats", None)
    if categories is not None and not _are_texts(categories):
        yield "categories is no collection of names"
    if formats is not None:
        if not _are_texts(formats) or not set(formats) <= set(FORMATS):
            yield f"image_formats holds other than {', '.join(FORMATS)}"
        elif not getattr(plugin, "needs_image", False):
            yield "image_formats is for providers that say needs_image = True"
        elif "jpeg" not in formats:
            yield "image_formats lacks jpeg, as which any other photo comes"
    at_once, rate = getattr(plugin, "max_in_flight", None), getattr(plugin, "rate", None)
    if at_once is not None and (type(at_once) is not int or at_once < 1):
        yield "max_in_flight is no whole number from 1"
    if rate is not None and not _is_rate(rate):
        yield "rate is no Rate(n, per_seconds) of two numbers above 0"
    yield from extra_fields_faults(getattr(plugin, "extra_fields", None))


def _are_texts(names: Any) -> bool:
    is_collection = isinstance(names, Collection) and not isinstance(names, (str, bytes, Mapping))
    return is_collection and bool(names) and all(isinstance(name, str) for name in names)


def _is_rate(rate: object) -> bool:
    if not isinstance(rate, Rate):
        return False
    numbers = (rate.n, rate.per_seconds)
    are_numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers)
    return are_numbers and all(math.isfinite(each) and each > 0 for each in numbers)


def _extra_fault(name: str, value: Any, known: Mapping[str, Draft202012Validator]) -> str | None:
    if name not in known:
        return f"{name!r} is none of its extra_fields"
    error = next(known[name].iter_errors(value), None)
    return None if error is None else f"{name!r}: {error.message}"
