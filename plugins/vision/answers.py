"""The answer of a model: the schema it is asked to follow, and the conversion to attributes. No answer is trusted: text
in the photo, which anybody may have written, may have influenced it.
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
# Models answer with these instead of "", against the prompt.
NO_ANSWERS = {"unknown", "n/a", "none", "null", "not visible", "not sure", "unclear", "unidentified", "-", "?"}
Schema = dict[str, Any]


def schema(value: Schema, confidence: Schema, **more: Any) -> Schema:
    """Return the JSON schema of an answer. more: further keywords of each object in it."""

    def of(properties: Schema) -> Schema:
        return {"type": "object", "properties": properties, "required": list(properties), **more}

    return of({name: of({"value": value, "confidence": confidence}) for name in FIELDS})


# ASKED is sent: strict schemas must not have limits. VALID has them and checks the answer.
ASKED = schema({"type": "string"}, {"type": "number"}, additionalProperties=False)
VALID = jsonschema.Draft202012Validator(
    schema({"type": "string", "maxLength": MAX_VALUE_LENGTH}, {"type": "number", "minimum": 0, "maximum": 1})
)


class UnreadableAnswer(RetryableJobError):
    """The answer does not follow the schema: two tries, because a model may fail once by chance."""

    def __init__(self, usage: Usage | None = None) -> None:
        """usage: of the call, which is billed all the same."""
        super().__init__(UNREADABLE, max_attempts=2, usage=usage)


def attributes_in(text: str) -> tuple[Attribute, Attribute, Attribute]:
    """Return brand, model and colorway in the text of an answer; ValueError when it does not follow the schema."""
    try:
        answer = json.loads(text, parse_constant=_refuse_constant)
        VALID.validate(answer)
    except (RecursionError, jsonschema.ValidationError) as error:
        # The validator's own text would contain the answer, which may be long.
        raise ValueError(f"the answer does not keep to the schema ({type(error).__name__})") from None
    brand, model, colorway = (_attribute(answer[name]) for name in FIELDS)
    return brand, model, colorway


def one_line(text: str, length: int) -> str:
    """Return the text without line breaks and control characters, at most `length` characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:length]


def count_of(number: Any) -> int | None:
    """Return a number of tokens from a reply, None when it is not valid."""
    return number if type(number) is int and 0 <= number < 2**53 else None


def sum_of(*numbers: Any) -> int | None:
    """Return the sum of the valid numbers of tokens, None without any."""
    counts = [count for number in numbers if (count := count_of(number)) is not None]
    return sum(counts) if counts else None


def _attribute(field: Mapping[str, Any]) -> Attribute:
    value = one_line(field["value"], MAX_VALUE_LENGTH)
    return UNKNOWN if not value or value.casefold() in NO_ANSWERS else Attribute(value, float(field["confidence"]))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
