"""The endpoints of OpenAI, Anthropic and Gemini on real sockets: analysis of a photo and information about the model.

In a test's loop: `fake = FAKES["openai"](); fake.start(); ...; await fake.stop()`. They check requests as strictly as
the API references say, and are worse in one point: a refusal of a key repeats the complete key.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.vision_server import FakeVision, Recorded, Reply

ACCEPTED_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# Keywords that a strict schema may not have; some endpoints accept a few of them, none accepts all.
UNSUPPORTED = {"minimum", "maximum", "minLength", "maxLength", "pattern", "default", "oneOf", "not"}


class FakeOpenAi(FakeVision):
    """Chat completions."""

    name, root, tokens = "openai", "/v1", (1105, 57)

    def completion(self, content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
        choice = {
            "index": 0,
            "finish_reason": finish_reason,
            "logprobs": None,
            "message": {"role": "assistant", "content": as_text(content), "refusal": None} | message,
        }
        usage = {
            **{"prompt_tokens": 1105, "completion_tokens": 57, "total_tokens": 1162},
            "completion_tokens_details": {"reasoning_tokens": 20},
        }
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "openai-model-2026-01-01"}
        return head | {"choices": [choice], "usage": usage}

    def error(self, message: str, kind: str = "") -> dict[str, Any]:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": kind or None}}

    def refused_key(self, recorded: Recorded) -> Reply | None:
        given = recorded.headers.get("Authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return Reply(401, self.error(f"Incorrect API key provided: {given}", "invalid_api_key"))

    def about_model(self, recorded: Recorded) -> Reply:
        assert recorded.path == "models"
        return Reply(body={"object": "list", "data": [{"id": "openai-model", "object": "model"}]})

    def fault(self, recorded: Recorded) -> str:
        if recorded.path != "chat/completions":
            return "Invalid URL"
        known = {"model", "messages", "response_format", "max_completion_tokens"}
        if unknown := set(recorded.body) - known:
            return f"Unsupported parameter: {unknown}"
        if fault := photo_fault(recorded.image):
            return fault
        response_format = recorded.body["response_format"]
        if response_format["type"] == "json_object":
            names_json = "JSON" in json.dumps(recorded.body["messages"])
            return "" if names_json else "'messages' must contain the word 'json' in some form"
        return strict_fault(response_format["json_schema"]["schema"])

    def image_in(self, body: Any) -> bytes:
        for message in body.get("messages", ()):
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image_url":
                    head, _, data = part["image_url"]["url"].partition(";base64,")
                    assert head.startswith("data:image/"), "the image was sent as an address"
                    return base64.b64decode(data, validate=True)
        return b""


class FakeAnthropic(FakeVision):
    """Messages."""

    name, root, tokens = "anthropic", "/proxy", (1425, 83)

    def completion(self, content: Any, stop_reason: str = "end_turn", **more: Any) -> dict[str, Any]:
        blocks = [{"type": "thinking", "thinking": "{It may be a shoe}", "signature": "x"}]
        text = as_text(content)
        parts = [] if text is None else [{"type": "text", "text": text}]
        return {
            **{"id": "msg_1", "type": "message", "role": "assistant", "model": "anthropic-model-2026-01-01"},
            **{"content": blocks + parts, "stop_reason": stop_reason, "stop_sequence": None},
            "usage": {
                **{"input_tokens": 1400, "cache_creation_input_tokens": 25, "cache_read_input_tokens": 0},
                "output_tokens": 83,
            },
            **more,
        }

    def error(self, message: str, kind: str = "") -> dict[str, Any]:
        error = {"type": kind or "invalid_request_error", "message": message}
        return {"type": "error", "error": error, "request_id": "req_1"}

    def refused_key(self, recorded: Recorded) -> Reply | None:
        given = recorded.headers.get("X-Api-Key")
        if self.key is None or given == self.key:
            return None
        return Reply(401, self.error(f"invalid x-api-key {given}", "authentication_error"))

    def about_model(self, recorded: Recorded) -> Reply:
        model = recorded.path.removeprefix("v1/models/")
        if model.startswith("no-"):
            return Reply(404, self.error(f"model: {model}", "not_found_error"))
        return Reply(body={"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"})

    def fault(self, recorded: Recorded) -> str:
        body = recorded.body
        if recorded.path != "v1/messages" or recorded.headers.get("Anthropic-Version") != "2023-06-01":
            return "anthropic-version: header is required"
        # No sampling settings and no forced tool: current models refuse both.
        known = {"model", "max_tokens", "system", "messages", "output_config"}
        if unknown := set(body) - known:
            return f"{unknown}: Extra inputs are not permitted"
        if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
            return "max_tokens: Input should be a valid integer"
        source = next(each for each in body["messages"][0]["content"] if each["type"] == "image")["source"]
        if fault := photo_fault(recorded.image, source["media_type"]):
            return fault
        if body["output_config"]["format"]["type"] != "json_schema":
            return "output_config.format.type: Input should be 'json_schema'"
        return strict_fault(body["output_config"]["format"]["schema"])

    def image_in(self, body: Any) -> bytes:
        for part in body["messages"][0]["content"]:
            if part["type"] == "image":
                assert part["source"]["type"] == "base64", "the image was sent as an address"
                return base64.b64decode(part["source"]["data"], validate=True)
        return b""


class FakeGemini(FakeVision):
    """generateContent."""

    name, root, tokens = "gemini", "/v1beta", (1290, 91)

    def completion(self, content: Any, finish_reason: str = "STOP", **more: Any) -> dict[str, Any]:
        text = as_text(content)
        # The text may come in several parts; a thought is not a part of the text.
        half = len(text or "") // 2
        answer = [] if text is None else [{"text": text[:half]}, {"text": text[half:]}]
        parts = [{"text": "{It may be a shoe}", "thought": True}, *answer]
        return {
            "candidates": [
                {"content": {"parts": parts, "role": "model"}, "finishReason": finish_reason, "index": 0},
            ],
            "usageMetadata": {
                **{"promptTokenCount": 1290, "candidatesTokenCount": 51, "thoughtsTokenCount": 40},
                **{"totalTokenCount": 1381, "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 1032}]},
            },
            **{"modelVersion": "gemini-model-001", "responseId": "x"},
            **more,
        }

    def error(self, message: str, kind: str = "", *details: Mapping[str, Any]) -> dict[str, Any]:
        return {"error": {"code": 400, "message": message, "status": kind or "INVALID_ARGUMENT", "details": details}}

    def refused_key(self, recorded: Recorded) -> Reply | None:
        given = recorded.headers.get("X-Goog-Api-Key")
        if self.key is None or given == self.key:
            return None
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        return Reply(400, self.error(f"API key not valid. Please pass a valid API key: {given}", "", info))

    def about_model(self, recorded: Recorded) -> Reply:
        model = recorded.path.removeprefix("models/")
        if model.startswith("no-"):
            return Reply(404, self.error(f"models/{model} is not found for API version v1beta", "NOT_FOUND"))
        return Reply(body={"name": f"models/{model}", "inputTokenLimit": 1048576})

    def fault(self, recorded: Recorded) -> str:
        body = recorded.body
        if not recorded.path.endswith(":generateContent"):
            return "Method not found"
        generation = body["generationConfig"]
        unknown = (set(body) - {"systemInstruction", "contents", "generationConfig"}) | (
            set(generation) - {"responseMimeType", "responseSchema", "maxOutputTokens"}
        )
        if unknown:
            return f'Invalid JSON payload received. Unknown name "{unknown}": Cannot find field.'
        if generation["responseMimeType"] != "application/json":
            return "responseSchema needs the response mime type application/json"
        inline = next(each for each in body["contents"][0]["parts"] if "inlineData" in each)["inlineData"]
        return photo_fault(recorded.image, inline["mimeType"]) or openapi_fault(generation["responseSchema"])

    def image_in(self, body: Any) -> bytes:
        for part in body["contents"][0]["parts"]:
            if "inlineData" in part:
                return base64.b64decode(part["inlineData"]["data"], validate=True)
        return b""


FAKES: Mapping[str, type[FakeVision]] = {fake.name: fake for fake in (FakeOpenAi, FakeAnthropic, FakeGemini)}


def as_text(content: Any) -> str | None:
    """Return the content as text: a text as it is, anything else as JSON, None as None."""
    return content if isinstance(content, str) or content is None else json.dumps(content)


def photo_fault(image: bytes, content_type: str = "image/jpeg") -> str:
    """Return the reason for which an endpoint would refuse the photo, "" without one."""
    try:
        picture = Image.open(io.BytesIO(image), formats=ACCEPTED_FORMATS)
        picture.load()
    except OSError:
        return "You uploaded an unsupported image"
    return "" if picture.get_format_mimetype() == content_type else f"the image is no {content_type}"


def strict_fault(schema: dict[str, Any]) -> str:
    """Return the reason for which an endpoint would refuse a strict JSON schema, "" without one."""
    if unsupported := UNSUPPORTED & set(schema):
        return f"Invalid schema: {unsupported} not permitted"
    if schema["type"] != "object":
        return ""
    if schema.get("additionalProperties") is not False or set(schema["required"]) != set(schema["properties"]):
        return "Invalid schema: additionalProperties must be false and every property required"
    return next(filter(None, map(strict_fault, schema["properties"].values())), "")


def openapi_fault(schema: dict[str, Any]) -> str:
    """Return the reason for which Gemini would refuse a schema, "" without one."""
    if unknown := set(schema) - {"type", "properties", "required", "propertyOrdering"}:
        return f'Invalid JSON payload received. Unknown name "{unknown}" at generation_config.response_schema'
    if schema["type"] not in ("OBJECT", "STRING", "NUMBER"):
        return f"Invalid value at type: {schema['type']}"
    if schema["type"] != "OBJECT":
        return ""
    names = set(schema["properties"])
    if set(schema["required"]) != names or set(schema["propertyOrdering"]) != names:
        return "required: property is not defined"
    return next(filter(None, map(openapi_fault, schema["properties"].values())), "")
