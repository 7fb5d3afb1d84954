"""What is wrong with settings, as the texts of errors: never with a value, which may be a secret."""

from __future__ import annotations

from pydantic import ValidationError


def field_faults(error: ValidationError, prefix: str = "") -> list[str]:
    """Return one text for each fault that pydantic found. prefix: the beginning of the variables' names."""
    faults = []
    for fault in error.errors(include_input=False):
        name = prefix + ".".join(map(str, fault["loc"])).upper()
        text = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {text}" if fault["loc"] else text)
    return faults
