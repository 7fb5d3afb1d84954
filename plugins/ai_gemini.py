"""The AI provider `gemini`: Google's Gemini, through generateContent with a response schema.

Source: the Gemini API reference (generateContent, structured output, API errors) and google.rpc's error details.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from pydantic import Field

from pipeline.hooks import AIProvider, PluginSettings, Sandbox, hookimpl

from .vision.answers import FIELDS, count_of, schema, sum_of
from .vision.provider import Answer, AnswerRefused, VisionProvider
from .vision.settings import ModelName, VisionSettings

if TYPE_CHECKING:
    from pipeline.settings import Settings

NAME = "gemini"
API_VERSION = 2
# Reasons for an early end that the next try would have too.
REFUSED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"}
CUT_OFF = "MAX_TOKENS"


def _response_schema() -> dict[str, Any]:
    """Return our schema in Gemini's form, a part of OpenAPI's: types in capitals, and the order of the properties."""
    properties = schema({"type": "STRING"}, {"type": "NUMBER"})["properties"]
    order = ["value", "confidence"]
    ordered = {name: each | {"type": "OBJECT", "propertyOrdering": order} for name, each in properties.items()}
    return {"type": "OBJECT", "properties": ordered, "required": [*FIELDS], "propertyOrdering": [*FIELDS]}


RESPONSE_SCHEMA = _response_schema()


class GeminiSettings(VisionSettings):
    """PLUGIN_GEMINI_..."""

    provider: ClassVar[str] = NAME

    base_url: str = Field(
        default="",
        description="Base URL of a gateway that speaks generateContent, /v1beta included; empty is Google's.",
    )
    model: ModelName = Field(
        default="gemini-3.5-flash-lite",
        description="Model to ask, one that can see; a small one names products well enough.",
    )


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `gemini`."""
    yield NAME, GeminiSettings


@hookimpl
def register_ai_providers(settings: Settings, sandbox: Sandbox) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer `gemini`."""
    yield NAME, lambda: GeminiProvider(settings.plugin(NAME, GeminiSettings), sandbox)


class GeminiProvider(VisionProvider):
    """Content generated from a photo."""

    name, maker = NAME, "Google"
    default_url = "https://generativelanguage.googleapis.com/v1beta"
    # A daily limit: the RetryInfo of its error concerns only the limit per minute.
    used_up = re.compile(r"PerDay|quota_exceeded|BILLING_DISABLED|billing_disabled")
    not_allowed = re.compile(r"PROHIBITED_CONTENT|IMAGE_SAFETY|BLOCKLIST")
    bad_photo = re.compile(r"unable to process input image|provided image is not valid", re.IGNORECASE)
    # A wrong key is a 400. FAILED_PRECONDITION: the free plan does not exist in that country.
    not_set_up = re.compile(r"API_KEY_|FAILED_PRECONDITION|failed_precondition|SERVICE_DISABLED")
    overloaded = re.compile(r"UNAVAILABLE|overloaded", re.IGNORECASE)

    def codes_in(self, error: Mapping[str, Any]) -> str:
        """Return code, status, message, the reasons in its details and the ids of the quotas that were reached."""
        words = [str(error.get(name)) for name in ("code", "status", "message")]
        details = error.get("details")
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, dict):
                words.append(str(detail.get("reason", "")))
                violations = detail.get("violations")
                quotas = violations if isinstance(violations, list) else ()
                words += [str(quota.get("quotaId", "")) for quota in quotas if isinstance(quota, dict)]
        return " ".join(words)

    def headers(self) -> Mapping[str, str]:
        """Return the key; as a header, because proxies log the URL."""
        key = self.settings.api_key.get_secret_value()
        return {"x-goog-api-key": key} if key else {}

    def question(self, prompt: str, about: str, photo: str) -> tuple[str, Mapping[str, Any]]:
        """Return the path and body that ask for generated content."""
        generation: dict[str, Any] = {"responseMimeType": "application/json", "responseSchema": RESPONSE_SCHEMA}
        if self.settings.max_output_tokens is not None:
            generation["maxOutputTokens"] = self.settings.max_output_tokens
        image = {"inlineData": {"mimeType": "image/jpeg", "data": photo}}
        return f"{self._model_path()}:generateContent", {
            "systemInstruction": {"parts": [{"text": prompt}]},
            "contents": [{"role": "user", "parts": [image, {"text": about}]}],
            "generationConfig": generation,
        }

    def answer(self, reply: Any) -> Answer:
        """Return the text of the first candidate, without its thoughts."""
        if reason := (reply.get("promptFeedback") or {}).get("blockReason"):
            raise AnswerRefused(f"blockReason {reason}")
        candidate = reply["candidates"][0]
        reason = candidate.get("finishReason")
        if reason in REFUSED:
            raise AnswerRefused(f"finishReason {reason}")
        if reason == CUT_OFF:
            raise ValueError("the answer was cut off: see PLUGIN_GEMINI_MAX_OUTPUT_TOKENS")
        parts = candidate["content"]["parts"]
        text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
        return Answer(text, reply.get("modelVersion"))

    def tokens(self, reply: Any) -> tuple[int | None, int | None]:
        """Return the tokens in `usageMetadata`."""
        usage = reply.get("usageMetadata") or {}
        # Thoughts are billed as output, but counted separately.
        output_tokens = sum_of(usage.get("candidatesTokenCount"), usage.get("thoughtsTokenCount"))
        return count_of(usage.get("promptTokenCount")), output_tokens

    def check_path(self) -> str:
        """Return the path with the data of the model."""
        return self._model_path()

    def _model_path(self) -> str:
        return f"/models/{quote(self.settings.model.removeprefix('models/'), safe='')}"
