"""How the commands reach the service: the settings in force, the process that runs on them, an address and a token."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from typing import Any

from pydantic import SecretStr

from pipeline import data_dir
from pipeline import settings as settings_module
from pipeline.auth import ADMIN_ROLE, make_token
from pipeline.settings import Settings

TOKEN_SECONDS = 30 * 86_400
# Time to click on it; the page makes a longer session of it.
LINK_SECONDS = 600
DEMO_USER, OPERATOR = "demo", "operator"


def load() -> Settings:
    """Return the settings with a way to check tokens: without any, the secret generated into DATA_DIR."""
    settings = settings_module.load()
    if settings.jwt_secret.get_secret_value() or settings.jwt_public_key or settings.jwt_jwks_url:
        return settings
    return settings.model_copy(update={"jwt_secret": SecretStr(data_dir.jwt_secret(settings.data_dir))})


def find_service(settings: Settings) -> dict[str, Any] | None:
    """Return pid and address of the service that runs on this DATA_DIR, if one answers."""
    try:
        service: dict[str, Any] = json.loads((settings.data_dir / "service.json").read_text())
        os.kill(service["pid"], 0)
        with urllib.request.urlopen(f"{service['address']}/livez", timeout=5):
            return service
    except (OSError, ValueError, KeyError, TypeError):  # no file or not ours, no process, no answer
        return None


def address_fault(settings: Settings) -> str | None:
    """Return why nobody can listen on HOST and PORT now, None when it is free."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return error.strerror or str(error)
        except UnicodeError:
            return "no host name"
        return None


def target(
    url: str | None, token: str | None, sub: str, *, role: str | None = None, expires_in: float = TOKEN_SECONDS
) -> tuple[str, str]:
    """Return the address and the token as given, else those of the service here and of that user.

    expires_in: seconds that a token made here is good for.
    """
    settings = load()
    if url is None:
        service = find_service(settings)
        url = service["address"] if service else settings.address
    return url, token or make_token(settings, sub, role, expires_in)


def page_link(settings: Settings, address: str) -> str:
    """Return the address of the page for photos with a token for the demo user, good for LINK_SECONDS."""
    return f"{address}/#token={make_token(settings, DEMO_USER, None, LINK_SECONDS, is_of_page=True)}"


def console_link(settings: Settings, address: str) -> str:
    """Return the address of the console with a token for an admin, good for LINK_SECONDS."""
    return f"{address}/console#token={make_token(settings, OPERATOR, ADMIN_ROLE, LINK_SECONDS, is_of_page=True)}"
