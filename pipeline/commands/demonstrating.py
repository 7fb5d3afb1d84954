"""The commands `demo` (starts a service, uploads three photos, leaves the service running) and `link`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from pipeline import data_dir
from pipeline import demo as demo_pictures
from pipeline.auth import make_token
from pipeline.client import ClientError
from pipeline.commands import service_target
from pipeline.commands.service_target import this_command
from pipeline.commands.output import say
from pipeline.commands.submitting import submit_for_demo
from pipeline.errors import ConfigurationError
from pipeline.services import Service
from pipeline.settings import Settings
from pipeline.start import program

START_SECONDS = 60.0
LOOK_SECONDS = 0.05
LOG_NAME = "service.log"
LIMITS_OF_LOCAL = (
    "The demo used the offline AI: it reads the lettering on a product and sees its colours. A photo without lettering "
    "is `partial`: brand and model stay unknown. AI_PROVIDER or AI_SERVICE_URL name an AI that knows them by sight."
)
# The beginning of the line with which a command says why it ended.
ERROR = "Error: "


@click.command()
@click.option("--exit", "exit_", is_flag=True, help="Stop the running service, or else this demo's at its end.")
def demo(exit_: bool) -> None:
    """Start the service with everything embedded, submit three photos, and print each event. The service stays.

    Exit codes: 0 success; 1 a photo failed; 2 the service cannot start; 3 a photo was not finished in time; 130 Ctrl-C.
    """
    settings = service_target.load()
    running = service_target.find_service(settings)
    if running and exit_:
        _stop(running)
        say("The service has stopped.")
        return
    service = running or _start_service(settings)
    token = make_token(settings, service_target.DEMO_USER, None, service_target.TOKEN_SECONDS)
    try:
        code = submit_for_demo(service.address, token, demo_pictures.shown(settings.categories))
        if settings.all_providers == ("local",):
            say(LIMITS_OF_LOCAL)
    finally:
        if exit_:
            _stop(service)
    if not exit_:
        _print_how_to_use(settings, service, token)
    sys.exit(code)


def _print_how_to_use(settings: Settings, service: Service, token: str) -> None:
    say(f"The service runs at {service.address} (its log: {settings.data_dir}/{LOG_NAME})")
    if settings.gives_links:
        print_links(settings, service.address)
    else:
        admin = f"{this_command()} token --sub me --role admin"
        say(f"To sign in on /, paste the token below; on /console, paste the token that `{admin}` prints")
    say("For curl and programs:")
    say(f"export PIPELINE_URL={service.address}")
    say(f"export PIPELINE_TOKEN={token}")
    say(f"Stop it with: {this_command()} demo --exit")


def print_links(settings: Settings, address: str) -> None:
    """Print links to the two pages that sign the reader in."""
    say(f"Open these within ten minutes (new ones: {this_command()} link)")
    say(service_target.page_link(settings, address), label="  photos: ")
    say(service_target.console_link(settings, address), label=" console: ")


@click.command()
@click.option("--console", is_flag=True, help="Only the link to the console.")
@click.option("--photos", is_flag=True, help="Only the link to the page for photos.")
def link(console: bool, photos: bool) -> None:
    """Print links to the two pages of the service that runs here. Each link signs in for ten minutes."""
    settings = service_target.load()
    if not settings.gives_links:
        raise ConfigurationError(
            "links are printed only where HOST, and PUBLIC_URL if set, are loopback, and JWT_SECRET signs; "
            f"elsewhere set LOGIN_URL, or paste a token, as {this_command()} token --sub me prints it"
        )
    service = service_target.find_service(settings)
    if service is None:
        raise ClientError(f"No service runs on {settings.data_dir}; start it with {this_command()}")
    if console == photos:
        print_links(settings, service.address)
        return
    say((service_target.console_link if console else service_target.page_link)(settings, service.address))


def _start_service(settings: Settings) -> Service:
    """Start `serve` in the background, logging to DATA_DIR/service.log, and wait until it answers."""
    data_dir.prepare_data_dir(settings.data_dir)
    log_path = settings.data_dir / LOG_NAME
    environment = os.environ | ({"PORT": "0"} if service_target.address_fault(settings) else {})
    with data_dir.naming_data_dir(log_path):
        log_file = log_path.open("ab")
    with log_file:
        log_start = log_file.tell()
        process = subprocess.Popen(
            [sys.executable, *program(), "serve"],
            stdout=log_file,
            stderr=log_file,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        return _until_it_answers(settings, process, log_path, log_start)
    except BaseException:
        process.terminate()
        raise


def _until_it_answers(settings: Settings, process: subprocess.Popen[bytes], log_path: Path, log_start: int) -> Service:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        # Looked for after poll(): our process may have ended because another demo started a service first.
        if (service := service_target.find_service(settings)) is not None:
            return service
        if has_ended:
            lines = log_path.read_bytes()[log_start:].decode(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(ERROR)]
            reason = (errors or lines or ["it printed nothing"])[-1].removeprefix(ERROR)
            raise ConfigurationError(f"The service did not start: {reason}")
        time.sleep(LOOK_SECONDS)
    raise ConfigurationError(f"The service did not answer within {START_SECONDS:g} s; see {log_path}")


def _stop(service: Service) -> None:
    if not service.is_here:
        raise ClientError(f"The service runs on another host, {service.host}: stop it there")
    os.kill(service.pid, signal.SIGTERM)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(service.pid, os.WNOHANG)  # when this command started it
        try:
            os.kill(service.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(LOOK_SECONDS)
    raise ClientError(f"Process {service.pid} does not stop")
