"""The command `health`, for the health checks of containers and supervisors: asks the service of this machine.

Imports nothing heavy, because it is started every half a minute. Its exit codes are 0 and 1 only, also for wrong
settings, because container engines reserve 2.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import click

from pipeline import settings as settings_module
from pipeline.errors import ConfigurationError
from pipeline.services import services
from pipeline.settings import Settings
from pipeline.texts import cause_of, clean

MAX_REPLY_BYTES = 64 * 1024


@click.command()
@click.option("--ready", is_flag=True, help="Ask /readyz, which probes store, queue and storage, instead of /livez.")
@click.option(
    "--timeout",
    "timeout_seconds",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, 60, min_open=True),
    help="Seconds to wait for the answer.",
)
def health(ready: bool, timeout_seconds: float) -> None:
    """Ask the service at HOST and PORT of this machine whether it is alive; exit code 0 or 1."""
    try:
        host, port = _address(settings_module.load())
        fault = _ask(host, port, "/readyz" if ready else "/livez", timeout_seconds)
    except ConfigurationError as error:
        fault = error.message
    if fault:
        print(clean(fault), file=sys.stderr)
        sys.exit(1)
    print("ready" if ready else "alive")


def _address(settings: Settings) -> tuple[str, int]:
    """Return host and port at which the service on HOST and PORT is reached from this machine."""
    if not settings.port:
        return _written_address(settings.data_dir)
    try:
        address = ipaddress.ip_address(settings.host.strip("[]"))
    except ValueError:
        return settings.host, settings.port
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1", settings.port
    return str(address), settings.port


def _written_address(data_dir: Path) -> tuple[str, int]:
    """Return host and port of the service with PORT=0, read from the file that it wrote into DATA_DIR."""
    for service in services(data_dir):
        parts = urlsplit(service.address)
        if service.is_here and parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise ConfigurationError(f"PORT is 0, and no service runs on {data_dir}")


def _ask(host: str, port: int, path: str, timeout_seconds: float) -> str:
    """Return the fault, "" when there is none. Proxies of the environment are not used."""
    connection = HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        if reply.status == 200:
            return ""
        body = reply.read(MAX_REPLY_BYTES)
    except (OSError, HTTPException, UnicodeError) as error:
        return f"No answer from {host} port {port}: {cause_of(error)}"
    finally:
        connection.close()
    return _reason(body) or f"{path} answered with {reply.status}"


def _reason(body: bytes) -> str:
    """Return the reason in a reply of the service, "" where there is none."""
    try:
        error = json.loads(body)["error"]
        details = "; ".join(f"{each['field']}: {each['message']}" for each in error.get("details") or ())
        return f"{error['message']} ({details})" if details else str(error["message"])
    except (ValueError, KeyError, TypeError):
        return ""
