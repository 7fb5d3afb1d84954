"""The AI provider `openai`: any endpoint with OpenAI's chat completions and a model that accepts images.

Source: OpenAI's API reference (chat completions, structured outputs, rate limits), and the differences of compatible
servers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipeline.hooks import AIProvider, PluginSettings, Sandbox, hookimpl

from .vision.answers import ASKED, count_of
from .vision.provider import Answer, AnswerRefused, VisionProvider
from .vision.settings import ModelName, VisionSettings

if TYPE_CHECKING:
    from pipeline.settings import Settings

NAME = "openai"
API_VERSION = 2


class ResponseFormat(StrEnum):
    """How the endpoint is asked to answer in JSON."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"


class OpenAiSettings(VisionSettings):
    """PLUGIN_OPENAI_..."""

    provider: ClassVar[str] = NAME

    base_url: str = Field(
        default="",
        description="Base URL of a compatible endpoint, /v1 included, as http://127.0.0.1:11434/v1; empty is OpenAI's.",
    )
    model: ModelName = Field(
        default="gpt-5.4-mini",
        description="Model to ask, one that can see; a small one names products well enough.",
    )
    response_format: ResponseFormat = Field(
        default=ResponseFormat.JSON_SCHEMA,
        description="json_schema (the endpoint follows our schema) or json_object, for endpoints that have only that.",
    )


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `openai`."""
    yield NAME, OpenAiSettings


@hookimpl
def register_ai_providers(settings: Settings, sandbox: Sandbox) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer `openai`."""
    yield NAME, lambda: OpenAiProvider(settings.plugin(NAME, OpenAiSettings), sandbox)


class OpenAiProvider(VisionProvider):
    """Chat completions with a photo."""

    name, maker = NAME, "OpenAI"
    default_url = "https://api.openai.com/v1"
    used_up = re.compile(r"insufficient_quota|credit_balance|billing_hard_limit|spend_limit|usage_limit")
    not_allowed = re.compile(r"(image_)?content_(filter|policy)|moderation|safety_violation")
    bad_photo = re.compile(r"invalid_(base64_)?image|unsupported_image|empty_image|image_(too|parse|file|content)")
    not_set_up = re.compile(r"invalid_api_key|model_not_found|account_deactivated")
    overloaded = re.compile(r"overloaded|slow_down|engine")

    def __init__(self, settings: OpenAiSettings, sandbox: Sandbox) -> None:
        super().__init__(settings, sandbox)
        self._response_format = settings.response_format

    def headers(self) -> Mapping[str, str]:
        """Return the key as a bearer token."""
        key = self.settings.api_key.get_secret_value()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def question(self, prompt: str, about: str, photo: str) -> tuple[str, Mapping[str, Any]]:
        """Return the path and body that ask for a chat completion."""
        response_format: dict[str, Any] = {"type": self._response_format.value}
        if self._response_format is ResponseFormat.JSON_SCHEMA:
            response_format["json_schema"] = {"name": "product", "strict": True, "schema": ASKED}
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{photo}"}}
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": [{"type": "text", "text": about}, image]},
            ],
            "response_format": response_format,
        }
        # No temperature: models that think refuse it. A token limit only if it is set: some compatible servers refuse
        # unknown parameters.
        if self.settings.max_output_tokens is not None:
            body["max_completion_tokens"] = self.settings.max_output_tokens
        return "/chat/completions", body

    def answer(self, reply: Any) -> Answer:
        """Return the text of the first choice."""
        choice = reply["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        if message.get("refusal") or finish_reason == "content_filter":
            raise AnswerRefused(f"finish_reason {finish_reason}")
        if finish_reason == "length":
            raise ValueError("the answer was cut off: see PLUGIN_OPENAI_MAX_OUTPUT_TOKENS")
        return Answer(message["content"], reply.get("model"))

    def tokens(self, reply: Any) -> tuple[int | None, int | None]:
        """Return the tokens in `usage`."""
        usage = reply.get("usage") or {}
        return count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))

    def check_path(self) -> str:
        """Return the path of the list of models: not all compatible servers have a path for a single one."""
        return "/models"
