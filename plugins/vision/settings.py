"""The common settings of the three providers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from pipeline.hooks import PluginSettings, Rate, Usage

# The types of fields that each provider declares with its own default or description.
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
MaxOutputTokens = Annotated[int, Field(ge=64, le=128_000)]


class VisionSettings(PluginSettings):
    """PLUGIN_<NAME>_... of one provider."""

    provider: ClassVar[str]

    api_key: SecretStr = Field(
        default=SecretStr(""), description="Key of the endpoint; optional where BASE_URL names another one."
    )
    base_url: str = Field(default="", description="Another endpoint with the same API; empty is the maker's own.")
    model: ModelName = Field(default="", description="Model to ask, one that accepts images.")
    max_side_pixels: int = Field(
        default=1024,
        description="Longest side of the photo as it is sent; endpoints reduce to this size too, and more costs more.",
        ge=256,
        le=1600,
    )
    max_output_tokens: MaxOutputTokens | None = Field(
        default=None,
        description="Most tokens of one answer, thinking included; empty leaves it to the endpoint.",
    )
    timeout_seconds: float = Field(
        default=60,
        description="How long one answer may take; PROVIDER_TIMEOUT_SECONDS, with the photo in it, ends it too.",
        ge=1,
        le=600,
    )
    calls_per_minute: float | None = Field(
        default=None,
        description="Most calls in a minute, of all processes together, as the account allows; empty sets no limit.",
        gt=0,
        le=100_000,
    )
    input_price: float | None = Field(
        default=None,
        description="Price of a million input tokens, in CURRENCY; empty is unknown, 0 is for one's own server.",
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
    )
    output_price: float | None = Field(
        default=None,
        description="Price of a million output tokens, thinking included; set both prices or none.",
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
    )
    currency: str = Field(default="USD", description="Currency of the prices, three letters.", pattern="^[A-Z]{3}$")
    prompt_path: Path | None = Field(
        default=None,
        description="File with another prompt, made like plugins/vision/prompt.md; empty is that one.",
    )

    @model_validator(mode="after")
    def _check_relations(self) -> VisionSettings:
        faults = []
        key, prefix = self.api_key.get_secret_value(), f"PLUGIN_{self.provider.upper()}_"
        if not (key or self.base_url):
            faults.append(f"{prefix}API_KEY is needed unless {prefix}BASE_URL names another endpoint")
        if not re.fullmatch(r"[!-~]*", key):
            faults.append(f"{prefix}API_KEY has a character that no key has, perhaps a space or line break")
        if self.base_url and not _is_base_url(self.base_url):
            faults.append(f"{prefix}BASE_URL must be an http:// or https:// address without a password")
        if (self.input_price is None) != (self.output_price is None):
            faults.append(f"{prefix}INPUT_PRICE and {prefix}OUTPUT_PRICE go together: set both or none")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def rate(self) -> Rate | None:
        """How often the endpoint may be asked."""
        return None if self.calls_per_minute is None else Rate(self.calls_per_minute, 60)

    def usage(self, input_tokens: int | None, output_tokens: int | None) -> Usage | None:
        """Return the usage of an answer, None when nothing is known of it."""
        cost = None
        if self.input_price is not None and self.output_price is not None:
            if self.input_price == self.output_price == 0:
                cost = 0.0
            elif input_tokens is not None and output_tokens is not None:
                cost = (input_tokens * self.input_price + output_tokens * self.output_price) / 1_000_000
        if input_tokens is None and output_tokens is None and cost is None:
            return None
        return Usage(input_tokens, output_tokens, cost, self.currency)


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.hostname) and "@" not in parts.netloc and (parts.port or 1) > 0
        return parts.scheme in ("http", "https") and is_complete and not (parts.query or parts.fragment)
    except ValueError:
        return False
