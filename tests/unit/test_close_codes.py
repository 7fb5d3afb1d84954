"""contracts/close-codes.json defines the close codes; the AsyncAPI document, the server and the clients agree."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pipeline.client
import pipeline.handlers.socket
from pipeline.handlers.socket import CloseCode
from pipeline.metrics import CLOSE_CODES as COUNTED_CODES
from tests.contract import contracts
from tests.requirements import program

ROOT = Path(__file__).parents[2]
CODES: list[dict[str, Any]] = contracts.load("close-codes.json")  # type: ignore[assignment]
# A client closes a connection with the first two; the last one counts connections that end without a close code.
CODES_OF_CLIENTS = {1000, 1001, 1006}


def reactions_of(table: Any) -> dict[int, str]:
    """Return {code: final | token | reconnect} of a client's table: a list as in the contract, or a mapping by code."""
    if isinstance(table, Mapping):
        return {int(code): each if isinstance(each, str) else each["client"] for code, each in table.items()}
    return {each["code"]: each["client"] for each in table}


PROMISED = reactions_of(CODES)


def python_client_modules() -> Iterable[ModuleType]:
    """Yield the package of the Python client and its modules."""
    yield pipeline.client
    for found in pkgutil.iter_modules(getattr(pipeline.client, "__path__", ()), "pipeline.client."):
        yield importlib.import_module(found.name)


def test_contract_lists_each_code_once_with_what_clients_do() -> None:
    """Each code and name occurs once and has a meaning; `client` is one of three words."""
    assert len(PROMISED) == len(CODES) == len({each["name"] for each in CODES})
    assert set(PROMISED.values()) == {"final", "token", "reconnect"}
    assert all(each.keys() == {"code", "name", "meaning", "client"} and each["meaning"] for each in CODES)


def test_asyncapi_has_the_same_list() -> None:
    """`x-close-codes` of the AsyncAPI document equals the list."""
    assert contracts.load("rooms.asyncapi.json")["channels"]["socket"]["x-close-codes"] == CODES


def test_server_closes_with_the_codes_of_the_contract() -> None:
    """The names, numbers and table of the server and the series of the metric are those of the contract."""
    assert {code.name: int(code) for code in CloseCode} == {each["name"]: each["code"] for each in CODES}
    text = pipeline.handlers.socket.__doc__ or ""
    table = {int(code): reaction for code, reaction in re.findall(r"^\| (\d{4}) \|.*\| (\w+) \|$", text, re.M)}
    assert table == PROMISED | {1006: "reconnect"}
    assert set(COUNTED_CODES) == PROMISED.keys() | CODES_OF_CLIENTS


def test_temporary_conditions_are_never_final() -> None:
    """Codes for a full server, a timeout or too many frames let the client reconnect."""
    final = {each["name"] for each in CODES if each["client"] == "final"}
    assert final == {"PROTOCOL_ERROR", "INVALID_TEXT", "TOO_BIG", "MALFORMED"}


def test_python_client_has_the_same_table() -> None:
    """Each table CLOSE_CODES in the Python client equals that of the contract."""
    for module in python_client_modules():
        if (table := getattr(module, "CLOSE_CODES", None)) is not None:
            assert reactions_of(table) == PROMISED, module.__name__


def test_javascript_client_has_the_same_table() -> None:
    """The table that the JavaScript client exports equals that of the contract."""
    client = ROOT / "clients/js/pipeline-client.js"
    node = program("node")
    script = f"import * as client from {json.dumps(client.as_uri())}; console.log(JSON.stringify(client.CLOSE_CODES))"
    command = [node, "--input-type=module", "-e", script]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert ("CLOSE_CODES" in client.read_text()) == (printed != "undefined"), "the table exists and is not exported"
    if printed != "undefined":
        assert reactions_of(json.loads(printed)) == PROMISED
