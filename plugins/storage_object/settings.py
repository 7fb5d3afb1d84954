"""The settings of the storage `object`."""

from __future__ import annotations

import base64
import re

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.hooks import PluginSettings

# Characters that need no escaping in a URL; no part of the prefix is "." or "..".
STORE_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9$][\w.-]+)((?:/(?!\.{1,2}(?:/|$))[\w.-]+)*)/?", re.ASCII)
ADDRESS = re.compile(r"https?://[^/?#\s@]+(/[^?#\s]*)?")
# The image URLs that the contract allows in a job.
IMAGE_ADDRESS = re.compile(r"(https://[^/?#\s@]+|http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?)(/[^?#\s]*)?")
WEEK_SECONDS = 7 * 24 * 3600


class ObjectSettings(PluginSettings):
    """The bucket of the images, and the URLs under which clients get them."""

    url: str = Field(
        description="s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; the prefix may be left out."
    )
    endpoint: str = Field(
        default="",
        description="Address of an S3 that is not Amazon's (MinIO, R2) or of an Azure emulator; default: the cloud's.",
    )
    region: str = Field(default="", description="Region of an S3 bucket; default: AWS_REGION, else us-east-1.")
    access_key_id: SecretStr = Field(
        default=SecretStr(""),
        description="Access key of S3, account name of Azure; default: the cloud's usual variables, files and roles.",
    )
    secret_access_key: SecretStr = Field(default=SecretStr(""), description="Secret key of S3, account key of Azure.")
    public_url: str = Field(
        default="",
        description="Base URL of a CDN or public bucket: an image's URL is this, the prefix and its name, and never "
        "expires. Default: URLs are signed whenever an image is shown, and expire.",
    )
    url_seconds: int = Field(
        default=WEEK_SECONDS,
        ge=60,
        le=WEEK_SECONDS,
        description="The longest time that signed URLs are valid, whatever MEDIA_URL_SECONDS is: S3 and GCS allow 7 "
        "days. URLs signed with a role's credentials expire with these, often after hours.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not STORE_URL.fullmatch(url):
            raise ValueError("must look like s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX")
        return url

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint and not ADDRESS.fullmatch(endpoint):
            raise ValueError("must be an http:// or https:// address")
        return endpoint

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, public_url: str) -> str:
        if public_url and not IMAGE_ADDRESS.fullmatch(public_url):
            raise ValueError("must be https:// (http:// only for a loopback host)")
        return public_url

    @model_validator(mode="after")
    def _check_relations(self) -> ObjectSettings:
        faults = []
        scheme, _, _ = self.location
        secret = self.secret_access_key.get_secret_value()
        if bool(self.access_key_id.get_secret_value()) != bool(secret):
            faults.append("PLUGIN_OBJECT_ACCESS_KEY_ID and PLUGIN_OBJECT_SECRET_ACCESS_KEY need each other")
        # Clients follow signed URLs to the endpoint. With a public URL only the service uses the endpoint.
        if self.endpoint and not self.public_url and not IMAGE_ADDRESS.fullmatch(self.endpoint):
            faults.append(
                "PLUGIN_OBJECT_ENDPOINT must be https:// (http:// only for a loopback host) "
                "unless PLUGIN_OBJECT_PUBLIC_URL is set"
            )
        if scheme == "az" and not _is_base64(secret):
            faults.append("PLUGIN_OBJECT_SECRET_ACCESS_KEY must be base64 for az://, as Azure's account keys are")
        for field in {"s3": (), "az": ("region",), "gs": ("endpoint", "region", "access_key_id")}[scheme]:
            if getattr(self, field) != type(self).model_fields[field].default:
                faults.append(f"PLUGIN_OBJECT_{field.upper()} means nothing for {scheme}://")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def location(self) -> tuple[str, str, str]:
        """Scheme, bucket, and prefix: "" or ending in a slash."""
        match = STORE_URL.fullmatch(self.url)
        assert match is not None
        scheme, bucket, prefix = match.groups()
        return scheme, bucket, f"{prefix[1:]}/" if prefix else ""


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True
