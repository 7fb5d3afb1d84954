"""How commands reach the service: the settings in force, the running process, its address, and a token."""

from __future__ import annotations

import math
import os
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from pipeline import data_dir
from pipeline import settings as settings_module
from pipeline.addresses import web_fault
from pipeline.auth import ADMIN_ROLE, make_token
from pipeline.errors import ConfigurationError
from pipeline.services import Service, services
from pipeline.settings import Role, Settings
from pipeline.start import program

TOKEN_SECONDS = 30 * 86_400
# Ten years: a longer time is a typing error.
MOST_HOURS = 87_600
# Time to open the link; the page then gets a longer token.
LINK_SECONDS = 600
DEMO_USER, OPERATOR = "demo", "operator"
ANSWER_SECONDS = 5.0
with_url = click.option(
    "--url", envvar="PIPELINE_URL", help="Address of the service; default: the one on this machine."
)
with_user_token = click.option(
    "--token", envvar="PIPELINE_TOKEN", help="Token of the user; default: one for the demo user."
)
# Without the proxies of the environment: only processes of this machine are called.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Number(click.FloatRange):
    """A number within a range. nan is refused: click's comparisons would accept it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def load() -> Settings:
    """Return the settings. Where they name no key for tokens, they get the secret generated into DATA_DIR."""
    settings = settings_module.load()
    if settings.jwt_secret.get_secret_value() or settings.jwt_public_key or settings.jwt_jwks_url:
        return settings
    return settings.model_copy(update={"jwt_secret": SecretStr(data_dir.jwt_secret(settings.data_dir))})


def find_service(settings: Settings) -> Service | None:
    """Return a process that runs on this DATA_DIR and answers, None without one; first those that accept uploads."""
    listed = sorted(services(settings.data_dir), key=lambda service: service.role == Role.WORKER)
    return next((service for service in listed if _answers(service)), None)


def _answers(service: Service) -> bool:
    try:
        with _DIRECTLY.open(f"{service.address}/livez", timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError):  # no answer, or not an HTTP one
        return False


def this_command() -> str:
    """Return the command line that runs this program."""
    words = program()
    is_command = len(words) == 1 and not words[0].endswith(".py")
    return Path(words[0]).name if is_command else " ".join((os.path.relpath(sys.executable), *words))


def address_fault(settings: Settings) -> str | None:
    """Return why HOST and PORT cannot be listened on, None when they are free."""
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
    """Return address and token of the service.

    url: None for the service on this machine.
    token: None for a new one of this user and role.
    expires_in: seconds that a new token is valid.
    """
    settings = load()
    if url is not None and (fault := web_fault(url)):
        raise ConfigurationError(f"--url, or PIPELINE_URL: {fault}")
    if url is None:
        service = find_service(settings)
        url = service.address if service else settings.address
    return url, token or make_token(settings, sub, role, expires_in)


def page_link(settings: Settings, address: str) -> str:
    """Return a link to the page for photos with a token of the demo user, valid for LINK_SECONDS."""
    return f"{address}/#token={make_token(settings, DEMO_USER, None, LINK_SECONDS, is_of_page=True)}"


def console_link(settings: Settings, address: str) -> str:
    """Return a link to the console with a token of an admin, valid for LINK_SECONDS."""
    return f"{address}/console#token={make_token(settings, OPERATOR, ADMIN_ROLE, LINK_SECONDS, is_of_page=True)}"
