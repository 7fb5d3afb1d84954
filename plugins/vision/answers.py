"""The answer of a model: what it is asked to keep to, and the Analysis it becomes. Nothing in it is trusted: the photo,
and so anybody, may have had a say in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from pipeline.errors import RetryableJobError
from pipeline.hooks import UNKNOWN, Attribute, Usage

from ..ai_http import UNREADABLE

FIELDS = ("brand", "model", "colorway")
MAX_VALUE_LENGTH = 200
# What models say instead of "", though they are told not to.
NO_ANSWERS = {"unknown", "n/a", "none", "null", "not visible", "not sure", "unclear", "unidentified", "-", "?"}
# What an answer must be for any of it to be believed.
Schema = dict[str, Any]


def schema(value: Schema, confidence: Schema, **more: Any) -> Schema:
    """Return the JSON schema of an answer. more: what each of its objects has beside properties."""

    def of(properties: Schema) -> Schema:
        return {"type": "object", "properties": properties, "required": list(properties), **more}

    return of({name: of({"value": value, "confidence": confidence}) for name in FIELDS})


# Asked for without limits, which strict schemas may not have; those are held against the answer.
ASKED = schema({"type": "string"}, {"type": "number"}, additionalProperties=False)
BELIEVED = jsonschema.Draft202012Validator(
    schema({"type": "string", "maxLength": MAX_VALUE_LENGTH}, {"type": "number", "minimum": 0, "maximum": 1})
)


class UnreadableAnswer(RetryableJobError):
    """The answer is not what was asked for: a model may slip once, twice is no slip."""

    def __init__(self, usage: Usage | None = None) -> None:
        """usage: what it cost all the same."""
        super().__init__(UNREADABLE, max_attempts=2, usage=usage)


def attributes_in(text: str) -> tuple[Attribute, Attribute, Attribute]:
    """Return brand, model and colorway in the text of an answer; ValueError when it is not as asked for."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
        BELIEVED.validate(found)
    except (RecursionError, jsonschema.ValidationError) as error:
        # The validator's own text has the answer in it, at any length.
        raise ValueError(f"the answer does not keep to the schema ({type(error).__name__})") from None
    brand, model, colorway = (_attribute(found[name]) for name in FIELDS)
    return brand, model, colorway


def one_line(text: str, length: int) -> str:
    """Return the text without line breaks and what steers a terminal."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:length]


def count_of(number: Any) -> int | None:
    """Return a number of tokens that an endpoint told, None when it is none."""
    return number if type(number) is int and 0 <= number < 2**53 else None


def sum_of(*numbers: Any) -> int | None:
    """Return the sum of those numbers of tokens that there are, None without any."""
    counts = [count for number in numbers if (count := count_of(number)) is not None]
    return sum(counts) if counts else None


def _attribute(found: Mapping[str, Any]) -> Attribute:
    value = one_line(found["value"], MAX_VALUE_LENGTH)
    return UNKNOWN if not value or value.casefold() in NO_ANSWERS else Attribute(value, float(found["confidence"]))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
