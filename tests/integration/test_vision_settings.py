"""The settings and the prompts of the providers `openai`, `anthropic` and `gemini`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.sandbox.sandbox import Sandbox
from pipeline.plugins.vision import prompt as prompts
from tests.integration.vision_requests import NAMES, factory, with_variables


@pytest.mark.parametrize("name", NAMES)
def test_faulty_settings_are_named(name: str, tmp_path: Path) -> None:
    """The error names every faulty variable, without its value; every setting has a description."""
    prefix = f"PLUGIN_{name.upper()}_"
    (tmp_path / "empty.md").write_text("version: 3\n[sneaker]\nIt has laces.\n")
    (tmp_path / "large.md").write_text("x" * 70_000)
    table: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["API_KEY is needed"]),
        ({"API_KEY": "sk-two words"}, ["API_KEY has a character"]),
        ({"API_KEY": "sk-line\n"}, ["API_KEY has a character"]),
        ({"API_KEY": "ключ-9876"}, ["API_KEY has a character"]),
        ({"BASE_URL": "api.example/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://me:sk-secret@api.example/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://[::1/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://api.example/v1?key=sk-secret"}, ["BASE_URL must be"]),
        ({"API_KEY": "sk two", "BASE_URL": "x"}, ["API_KEY has", "BASE_URL must"]),
        ({"API_KEY": "sk-123456", "INPUT_PRICE": "1"}, ["INPUT_PRICE and"]),
        ({"MAX_SIDE_PIXELS": "5000", "OUTPUT_PRICE": "inf"}, ["MAX_SIDE_PIXELS", "OUTPUT_PRICE"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "none.md")}, ["PROMPT_PATH: the prompt cannot"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "empty.md")}, ["PROMPT_PATH", "no text for all"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "large.md")}, ["PROMPT_PATH", "65536 bytes"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path)}, ["PROMPT_PATH"]),
    ]
    for variables, faults in table:
        with pytest.raises(ConfigurationError) as caught:
            factory(name, with_variables(name, **variables), Sandbox())
        assert all(fault in caught.value.message for fault in faults), (variables, caught.value.message)
        assert prefix + faults[0].split()[0].rstrip(":") in caught.value.message
        assert not any(value in caught.value.message for value in variables.values() if len(value) > 5)
    ((offered, own),) = import_module(f"pipeline.plugins.ai_{name}").register_settings()
    assert offered == name and all(field.description for field in own.model_fields.values())


def test_changed_prompt_has_a_new_version() -> None:
    """A change of the prompt's text changes its version, also with the same number; a byte order mark is ignored."""
    first, second = (prompts.parse(f"version: 7\nName it{end}\n".encode()) for end in ("", " now"))
    assert first.version.startswith("7-") and second.version.startswith("7-") and first.version != second.version
    plain = prompts.parse("\ufeffversion: 8 \r\nName it.\r\n[hat]\r\nIt has a brim.\r\n".encode())
    assert (plain.text, plain.hints) == ("Name it.", {"hat": "It has a brim."}) and plain.version.startswith("8-")
    assert prompts.load(None, "x").hints.keys() == {"sneaker", "lego", "camera"}
