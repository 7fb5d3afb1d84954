"""The settings of a plugin `acme`, with one field of each type."""

from __future__ import annotations

from pydantic import Field, SecretStr

from pipeline.hooks import PluginSettings


class AcmeSettings(PluginSettings):
    """One field of each type."""

    api_key: SecretStr
    url: str = "https://acme.example"
    attempts: int = Field(3, ge=1, le=9)
    is_strict: bool = False
    tags: tuple[str, ...] = ("one",)
    ports: list[int] = [80]
    hosts: frozenset[str] = frozenset()
