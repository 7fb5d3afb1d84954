"""The AI provider `anthropic`: Claude, through the Messages API with structured output.

Source: Anthropic's API reference (Messages, structured outputs, errors, rate limits). The schema is sent in
output_config and not as a tool that the model must use: current models refuse a forced tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from pydantic import Field

from pipeline.hooks import AIProvider, PluginSettings, Sandbox, hookimpl

from .vision.answers import ASKED, count_of, sum_of
from .vision.provider import Answer, AnswerRefused, VisionProvider
from .vision.settings import MaxOutputTokens, ModelName, VisionSettings

if TYPE_CHECKING:
    from pipeline.settings import Settings

NAME = "anthropic"
API_VERSION = 2
# The version of their API; it has been the latest for years.
PROTOCOL = "2023-06-01"
CUT_OFF = ("max_tokens", "model_context_window_exceeded")
# The tokens of a prompt that Anthropic has cached are counted separately.
INPUT_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicSettings(VisionSettings):
    """PLUGIN_ANTHROPIC_..."""

    provider: ClassVar[str] = NAME

    base_url: str = Field(
        default="", description="Base URL of a gateway that speaks the Messages API, without /v1; empty is Anthropic's."
    )
    model: ModelName = Field(
        default="claude-haiku-5-5",
        description="Model to ask, from Claude 4.5 on; the smallest one names products well enough.",
    )
    max_output_tokens: MaxOutputTokens = Field(
        default=4096,
        description="Most tokens of one answer, thinking included; the API demands a limit.",
    )


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `anthropic`."""
    yield NAME, AnthropicSettings


@hookimpl
def register_ai_providers(settings: Settings, sandbox: Sandbox) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer `anthropic`."""
    yield NAME, lambda: AnthropicProvider(settings.plugin(NAME, AnthropicSettings), sandbox)


class AnthropicProvider(VisionProvider):
    """Messages with a photo."""

    name, maker = NAME, "Anthropic"
    default_url = "https://api.anthropic.com"
    # Its errors have few types; the reason is in their messages.
    used_up = re.compile(r"billing_error|credit balance is too low|spend[ _]limit|usage limits", re.IGNORECASE)
    not_allowed = re.compile(r"content filtering policy|usage policy", re.IGNORECASE)
    bad_photo = re.compile(r"could not process image|image exceeds|image dimensions|does not match", re.IGNORECASE)
    not_set_up = re.compile(r"authentication_error|permission_error|not_found_error")
    overloaded = re.compile(r"overloaded_error")

    def codes_in(self, error: Mapping[str, Any]) -> str:
        """Return the error's type and message."""
        return f"{error.get('type')} {error.get('message')}"

    def headers(self) -> Mapping[str, str]:
        """Return the key and the version of the API."""
        key = self.settings.api_key.get_secret_value()
        return {"anthropic-version": PROTOCOL} | ({"x-api-key": key} if key else {})

    def question(self, prompt: str, about: str, photo: str) -> tuple[str, Mapping[str, Any]]:
        """Return the path and body that ask for a message."""
        source = {"type": "base64", "media_type": "image/jpeg", "data": photo}
        content = [{"type": "image", "source": source}, {"type": "text", "text": about}]
        return "/v1/messages", {
            "model": self.settings.model,
            "max_tokens": self.settings.max_output_tokens,
            "system": prompt,
            "messages": [{"role": "user", "content": content}],
            "output_config": {"format": {"type": "json_schema", "schema": ASKED}},
        }

    def answer(self, reply: Any) -> Answer:
        """Return the text of the message, without the thinking before it."""
        if reply["stop_reason"] == "refusal":
            raise AnswerRefused("stop_reason refusal")
        if reply["stop_reason"] in CUT_OFF:
            raise ValueError("the answer was cut off: see PLUGIN_ANTHROPIC_MAX_OUTPUT_TOKENS")
        text = "".join(block["text"] for block in reply["content"] if block["type"] == "text")
        return Answer(text, reply.get("model"))

    def tokens(self, reply: Any) -> tuple[int | None, int | None]:
        """Return the tokens in `usage`."""
        usage = reply.get("usage") or {}
        return sum_of(*(usage.get(name) for name in INPUT_TOKENS)), count_of(usage.get("output_tokens"))

    def check_path(self) -> str:
        """Return the path with the data of the model."""
        return f"/v1/models/{quote(self.settings.model, safe='')}"
