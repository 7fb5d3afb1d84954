"""The notifier `webhook`: the addresses and settings that it refuses, and the secrets that it hides."""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import traceback
from typing import Any

import pytest
from tornado.testing import AsyncHTTPSTestCase

from pipeline.errors import ConfigurationError, PermanentJobError, RetryableJobError
from pipeline.settings import Settings
from pipeline.plugins import notify_webhook
from pipeline.plugins.notify_webhook import is_public
from tests.fake_receiver import FakeReceiver, Reply, running_in_thread
from tests.integration.notifier_factories import KEYS, SECRETS, failure, make_notification, make_webhook

# Apprise's mail service tries to import imghdr, which Python 3.13 does not have, and works without it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
# Globally routable, but assigned to no network, so no server answers there.
UNASSIGNED = "2000::1"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Give the event loop these answers, one per look-up; return the list of the names that it looks up."""
    looked_up: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        looked_up.append(host)
        found: list[Any] = []
        for address in answers[len(looked_up) - 1]:
            found += socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return looked_up


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),  # how an IPv6-only network reaches 8.8.8.8
        ("2002:808:808::1", True),
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),  # a provider's own network
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("172.16.0.1", False),
        ("192.0.2.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),  # is_global says True
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),  # is_global says True
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1
        ("2002:a00:1::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),  # also credentials of the cloud
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),  # is_global says True
        ("ff02::1", False),
        ("ff0e::1", False),  # is_global says True
    ],
)
@pytest.mark.gen_test
async def test_webhook_reaches_public_addresses_only(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch, address: str, is_allowed: bool
) -> None:
    """A private address in the URL is a settings error. Behind a host name it fails the call before a request."""
    assert is_public(address) is is_allowed
    host = f"[{address}]" if ":" in address else address
    if is_allowed:
        make_webhook(f"https://{host}/", allow_private=False)
        return
    with pytest.raises(ConfigurationError, match="PLUGIN_WEBHOOK_URL: is a private address"):
        make_webhook(f"https://{host}:{receiver.port}/", allow_private=False)
    if "%" not in address:
        resolve_to(monkeypatch, [address])
        webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False)
        assert isinstance(await failure(webhook), PermanentJobError)
        await webhook.close()
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "１２７.0.0.1", "[::ffff:7f00:1]", "0"],
)
def test_webhook_refuses_odd_spellings_of_a_private_address(host: str) -> None:
    """The C library would connect to each of them without a DNS look-up."""
    with pytest.raises(ConfigurationError, match="PLUGIN_WEBHOOK_URL: is a private address"):
        make_webhook(f"https://{host}/", allow_private=False)


@pytest.mark.gen_test
async def test_webhook_refuses_localhost(receiver: FakeReceiver) -> None:
    """A name from /etc/hosts is checked like any other name."""
    webhook = make_webhook(f"https://localhost:{receiver.port}/", allow_private=False)
    error = await failure(webhook)
    assert isinstance(error, PermanentJobError) and "PLUGIN_WEBHOOK_ALLOW_PRIVATE" in error.message
    assert receiver.connections == 0
    await webhook.close()


@pytest.mark.parametrize("answer", [[UNASSIGNED, "127.0.0.1"], ["127.0.0.1", UNASSIGNED]])
@pytest.mark.gen_test
async def test_webhook_refuses_a_name_with_one_private_address(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    """A second, public address does not help: when it fails, the private address would be the next."""
    resolve_to(monkeypatch, answer)
    webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False)
    assert isinstance(await failure(webhook), PermanentJobError)
    assert receiver.connections == 0
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_checks_the_address_of_each_connection(
    receiver: FakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection looks the name up once and uses the checked address. The next connection looks it up anew."""
    looked_up = resolve_to(monkeypatch, [UNASSIGNED], ["127.0.0.1"])
    webhook = make_webhook(f"https://receiver.example:{receiver.port}/", allow_private=False, budget_seconds=0.5)
    assert isinstance(await failure(webhook), RetryableJobError)
    assert looked_up == ["receiver.example"]
    assert isinstance(await failure(webhook), PermanentJobError)
    assert (len(looked_up), receiver.connections) == (2, 0)
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_reaches_private_names_when_allowed(receiver: FakeReceiver) -> None:
    """With ALLOW_PRIVATE a receiver in the own network is reached, also over http."""
    webhook = make_webhook(f"http://localhost:{receiver.port}/")
    await webhook.notify(make_notification())
    assert len(receiver.requests) == 1
    await webhook.close()


@pytest.mark.gen_test
async def test_webhook_checks_the_certificate() -> None:
    """A receiver without a trusted certificate gets no request, also in the own network."""
    with running_in_thread(AsyncHTTPSTestCase.default_ssl_options()) as receiver:
        webhook = make_webhook(f"https://localhost:{receiver.port}/")
        error = await failure(webhook)
        assert isinstance(error, RetryableJobError) and "ClientConnectorCertificateError" in error.message
        assert receiver.connections and not receiver.requests
        await webhook.close()


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"URL": ""}, "PLUGIN_WEBHOOK_URL: Field required"),
        ({"SECRET": ""}, "PLUGIN_WEBHOOK_SECRET: Field required"),
        ({"URL": "hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "ftp://hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https:///s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https://[::1/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "https://hooks.example:99999/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address"),
        ({"URL": "http://hooks.example/s3cret"}, "PLUGIN_WEBHOOK_URL: must be an https:// address, unless"),
        ({"SECRET": ","}, "PLUGIN_WEBHOOK_SECRET: names no secret"),
        ({"SECRET": "s3cret"}, "PLUGIN_WEBHOOK_SECRET: secret 1 is not whsec_"),
        ({"SECRET": SECRETS[0].removeprefix("whsec_")}, "PLUGIN_WEBHOOK_SECRET: secret 1 is not whsec_"),
        ({"SECRET": f"{SECRETS[0]},whsec_s3cret!"}, "PLUGIN_WEBHOOK_SECRET: secret 2 is not whsec_"),
        ({"SECRET": "whsec_" + base64.b64encode(b"x" * 23).decode()}, "base64 of 24 to 64 bytes"),
        ({"SECRET": "whsec_" + base64.b64encode(b"x" * 65).decode()}, "base64 of 24 to 64 bytes"),
        ({"ALLOW_PRIVATE": "s3cret"}, "PLUGIN_WEBHOOK_ALLOW_PRIVATE: "),
    ],
)
def test_webhook_names_the_setting_at_fault(variables: dict[str, str], fault: str) -> None:
    """The message names the variable that is wrong, and shows nothing of its value."""
    given = {"URL": "https://hooks.example/", "SECRET": SECRETS[0]} | variables
    settings = Settings().with_plugin_variables({f"PLUGIN_WEBHOOK_{name}": value for name, value in given.items()})
    ((_, build),) = notify_webhook.register_notifiers(settings)
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert fault in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("reply", [Reply(500), Reply(410), Reply(raw=b""), Reply(raw=b"nonsense\r\n\r\n"), None])
@pytest.mark.gen_test
async def test_webhook_shows_no_secret(
    receiver: FakeReceiver, caplog: pytest.LogCaptureFixture, reply: Reply | None
) -> None:
    """Password, token and key are sent to the receiver only: no error, traceback, repr or log shows them."""
    caplog.set_level(logging.DEBUG)
    url = f"http://user:passw0rd@127.0.0.1:{receiver.port}/hooks?token=t0ken"
    if reply is None:
        receiver.pause()
    else:
        receiver.script(reply)
    webhook = make_webhook(url, budget_seconds=0.5)
    error = await failure(webhook)
    settings = Settings().with_plugin_variables({"PLUGIN_WEBHOOK_URL": url, "PLUGIN_WEBHOOK_SECRET": SECRETS[0]})
    shown = "\n".join([*traceback.format_exception(error), repr(webhook), repr(settings), caplog.text])
    assert not any(secret in shown for secret in ("passw0rd", "t0ken", SECRETS[0], repr(KEYS[0])))
    basic = base64.b64encode(b"user:passw0rd").decode()
    assert receiver.requests[0].headers["Authorization"] == f"Basic {basic}"
    await webhook.close()
