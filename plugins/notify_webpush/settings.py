"""The settings of the notifier `webpush`."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, SecretStr, field_validator

from pipeline.hooks import PluginSettings
from .keys import read_key


class WebpushSettings(PluginSettings):
    """The sender, and the urgency of its messages."""

    subject: str = Field(
        description="mailto: or https: address at which a push service reaches the operator of this service."
    )
    private_key: SecretStr = Field(
        default=SecretStr(""),
        description="P-256 key that signs, PEM or base64url of its 32 bytes; default: created at the first start "
        "and stored in the asset store. With another key every browser has to subscribe again.",
    )
    ttl_seconds: int = Field(
        default=86_400,
        ge=0,
        le=2_419_200,
        description="How long a push service stores an event for a browser that is off.",
    )
    urgency: Literal["very-low", "low", "normal", "high"] = Field(
        default="normal", description="Urgency for a phone that saves power: very-low, low, normal or high."
    )
    allow_private: bool = Field(
        default=False, description="Allows http:// and private addresses, for a push service in your own network."
    )

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, value: str) -> str:
        if not re.fullmatch(r"mailto:[^\s@]+@[^\s@]+|https://\S+", value):
            raise ValueError("must look like mailto:ops@example.com or https://example.com/contact")
        return value

    @field_validator("private_key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            read_key(value.get_secret_value())
        return value
