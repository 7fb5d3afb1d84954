"""The environment variables of this process and those of `.env`, and which of them were meant to be settings.

Without this a mistyped name has no effect: with REDIS_ULR the service would run on an embedded Redis of its own.
Nothing is read when this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from pipeline.errors import ConfigurationError

FILE = ".env"
# At 0.8 AI_SERVICE_PORT, which Kubernetes sets for a service of that name, would be near AI_SERVICE_URL.
NEAR = 0.85
# All variables of `.env` are meant for us, so a name that is less near is suggested, too.
NEAR_IN_FILE = 0.6
# Short names, such as HOST and PORT, are near to too many others.
LEAST_SLIP_LENGTH = 8
# The variables that the SDK of OpenTelemetry reads itself.
OTHERS = ("OTEL_",)
# Of a file with the value of one setting.
MAX_VALUE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Unknown:
    """A variable that is no setting.

    meant: the setting with the nearest name, or "".
    is_slip: it is that name with two letters exchanged, one missing or one too many, and that setting is not given.
    """

    variable: str
    meant: str
    is_slip: bool = False


def read() -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of the environment and those of `.env` that are not empty; ConfigurationError for a broken
    `.env`.
    """
    try:
        text = Path(FILE).read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):  # some keep a virtual environment in a folder of that name
        text = ""
    except OSError as error:
        raise ConfigurationError(f"{FILE} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{FILE} is not UTF-8") from None
    for binding in parse_stream(StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigurationError(f"{FILE}, line {binding.original.line}: must look like NAME=value")
    in_file = {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value}
    return {name: value for name, value in os.environ.items() if value}, in_file


def read_value(path: str) -> str:
    """Return the text of the file, without the line end and the byte order mark that editors add; ValueError says what
    is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_VALUE_BYTES + 1)
        text = content.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"the file cannot be read: {reason}") from None
    if not text or len(content) > MAX_VALUE_BYTES:
        raise ValueError("the file is empty" if not text else f"the file has more than {MAX_VALUE_BYTES} bytes")
    return text


def find_unknown(
    environment: Mapping[str, str], in_file: Mapping[str, str], settings: Collection[str], prefix: str
) -> Iterator[Unknown]:
    """Yield the variables of the environment with a name near that of a setting, and all of `.env` that are none.

    settings: the names of all settings.
    prefix: of the variables of plugins, which catalogue.py looks at.
    """
    given = {name.upper() for name in (*environment, *in_file)}
    for name in dict.fromkeys((*in_file, *environment)):
        upper = name.upper()
        if upper in settings or upper.startswith((prefix, *OTHERS)):
            continue
        is_ours = name in in_file
        near = get_close_matches(upper, list(settings), 1, NEAR_IN_FILE if is_ours else NEAR)
        meant = near[0] if near else ""
        if meant or is_ours:
            yield Unknown(name, meant, meant not in given and _is_slip(upper, meant))


def _is_slip(name: str, meant: str) -> bool:
    """Return whether it is a slip of the fingers: two letters exchanged, one missing, one too many.

    REDIS_URI and MONGODB_URL are no slips, because other programs have them, and neither are plurals.
    """
    if len(meant) < LEAST_SLIP_LENGTH or name + "S" == meant or name == meant + "S":
        return False
    if len(name) == len(meant):
        return any(name[:at] + name[at + 1] + name[at] + name[at + 2 :] == meant for at in range(len(name) - 1))
    shorter, longer = sorted((name, meant), key=len)
    return any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)) if longer[at] != "_")
