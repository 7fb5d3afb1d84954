"""Settings that cannot be used, on the real command line: one line says what to change, and the exit code is 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.requirements import program, require
from tests.service import ROOT, Service

PASSWORD = "s3cretWord"
MONGODB = "mongodb://127.0.0.1:1/photos"
SHORT_KEY = """-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCsJLhgVV8ENGIc5QsAYbGWyBD2
bFbyfmSn7G0JZYcB2GNCB8c89uwBJBFn3JvRac+8RRpR0Cg/RUMiMJGuKFB04Zjj
3T5O72jFQKG5naOLYUrAS3f/ZaX/sI6REAorgeVNU688/HiEvpWMI7lL1RGERvX1
k9M4MqwiagwmsKK6pQIDAQAB
-----END PUBLIC KEY-----"""
STARTS = [
    ("a host and a port", {"REDIS_URL": "localhost:6379"}, "REDIS_URL: must look like redis://"),
    ("a name for a database", {"REDIS_URL": f"redis://:{PASSWORD}@h/staging"}, "REDIS_URL: after the host"),
    ("a bare slash in a password", {"REDIS_URL": f"redis://:{PASSWORD}/x@h"}, "%2F"),
    ("another database", {"MONGODB_URI": f"postgres://u:{PASSWORD}@h/x"}, "MONGODB_URI: must look like mongodb://"),
    ("an option with a wrong value", {"MONGODB_URI": f"{MONGODB}?tls=maybe"}, "MONGODB_URI: The value of tls must be"),
    ("an unknown option", {"MONGODB_URI": f"{MONGODB}?tsl=true"}, "MONGODB_URI: Unknown option"),
    ("a file that is not there", {"MONGODB_URI": f"{MONGODB}?tls=true&tlsCAFile=/nowhere"}, "not readable"),
    ("a mistyped name", {"REDIS_ULR": f"redis://:{PASSWORD}@h"}, "no setting REDIS_ULR (did you mean REDIS_URL?)"),
    ("a mistyped name of a plugin's", {"PLUGIN_WEBHOOK_ULR": "https://h"}, "(did you mean PLUGIN_WEBHOOK_URL?)"),
    ("a name that cannot be looked up", {"HOST": "a..b"}, "Cannot listen on a..b:0 (no host name)"),
    ("a text that is no key", {"JWT_SECRET": "", "JWT_PUBLIC_KEY": "x"}, "JWT_PUBLIC_KEY is not a PEM public key"),
    ("a text that is no cloud", {"CLOUDINARY_URL": PASSWORD}, "CLOUDINARY_URL must look like cloudinary://"),
    ("no plugin", {"STORAGE_BACKEND": "nosuch"}, "there is no storage 'nosuch'"),
    ("no number", {"LEASE_SECONDS": "nan"}, "LEASE_SECONDS"),
    ("a file as folder", {"DATA_DIR": "/dev/null"}, "DATA_DIR: /dev/null cannot be used: it is no folder"),
    ("a folder in a file", {"DATA_DIR": "/dev/null/data"}, "DATA_DIR: /dev/null/data cannot be used: Not a directory"),
    ("a folder that cannot be made", {"DATA_DIR": "/proc/data"}, "DATA_DIR: /proc/data cannot be used"),
]
UNSAFE_STARTS = [
    ("no origin", {"ALLOWED_ORIGINS": "null"}, "ALLOWED_ORIGINS: null stands for every page without an origin"),
    ("a path", {"ALLOWED_ORIGINS": f"https://u:{PASSWORD}@a.example/x"}, "ALLOWED_ORIGINS: an origin has no path"),
    ("a secret of blanks", {"JWT_SECRET": " " * 40}, "JWT_SECRET must have at least 32 bytes, without blanks"),
    ("a secret that repeats", {"JWT_SECRET": PASSWORD * 4}, "JWT_SECRET is too easy to guess"),
    ("a short key", {"JWT_SECRET": "", "JWT_PUBLIC_KEY": SHORT_KEY}, "JWT_PUBLIC_KEY has 1024 bits"),
    (
        "a private key",
        {"JWT_SECRET": "", "JWT_PUBLIC_KEY": f"-----BEGIN PRIVATE KEY-----\n{PASSWORD}"},
        "JWT_PUBLIC_KEY is a private key",
    ),
    (
        "keys over plain http",
        {"JWT_SECRET": "", "JWT_JWKS_URL": f"http://u:{PASSWORD}@issuer.example"},
        "JWT_JWKS_URL: must be https://",
    ),
]
COMMANDS = [("serve",), ("check",), ("token",), ("settings",), ("demo",), ("submit", "README.md", "--category", "lego")]


def refusal(data_dir: Path, command: tuple[str, ...], variables: Mapping[str, str]) -> str:
    """Run the command and return the one line that it prints; its exit code is 2."""
    environment = Service(data_dir, "http://127.0.0.1:1", COLUMNS="80").environment | variables
    done = subprocess.run(
        [sys.executable, "run.py", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: "), done.stderr
    assert PASSWORD not in done.stderr
    return done.stderr


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A filesystem in which no user can write, not even root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    command = [program("mount"), "-t", "tmpfs", "-o", "ro,size=1m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    require(done.returncode == 0, f"needs a filesystem of its own: {done.stderr.strip()}")
    yield folder
    subprocess.run([program("umount"), str(folder)], check=True)


@pytest.mark.fault("E28")
@pytest.mark.parametrize(("variables", "text"), [row[1:] for row in STARTS], ids=[row[0] for row in STARTS])
def test_start_is_refused_in_one_line(tmp_path: Path, variables: dict[str, str], text: str) -> None:
    """The line has no trace and no password, and no embedded Redis is started instead."""
    assert text in refusal(tmp_path / "data", ("serve",), variables)


@pytest.mark.fault("R16")
@pytest.mark.fault("R17")
@pytest.mark.parametrize(
    ("variables", "text"), [row[1:] for row in UNSAFE_STARTS], ids=[row[0] for row in UNSAFE_STARTS]
)
def test_unsafe_start_is_refused_in_one_line(tmp_path: Path, variables: dict[str, str], text: str) -> None:
    """Settings that would admit unauthenticated clients are refused."""
    assert text in refusal(tmp_path / "data", ("serve",), variables)


@pytest.mark.fault("E23")
@pytest.mark.fault("E28")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_refuses_in_the_same_way(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Both faults are in the one line, a mistyped name and a wrong address."""
    line = refusal(tmp_path / "data", command, {"MONGDB_URI": "x", "REDIS_URL": f"redis://:{PASSWORD}@h/staging"})
    assert "there is no setting MONGDB_URI (did you mean MONGODB_URI?)" in line and "REDIS_URL: after the host" in line


@pytest.mark.fault("E28")
@pytest.mark.parametrize("command", [("serve",), ("check",), ("demo",)], ids=lambda command: command[0])
def test_read_only_folder_is_refused(tmp_path: Path, read_only: Path, command: tuple[str, ...]) -> None:
    """A read-only folder is refused, and so is a new folder inside it."""
    for data_dir in (read_only, read_only / "data"):
        assert f"DATA_DIR: {data_dir} cannot be used: Read-only" in refusal(data_dir, command, {})


@pytest.mark.fault("E28")
def test_similar_name_is_a_warning_and_other_names_are_not(tmp_path: Path) -> None:
    """The service starts; the log names the setting that is similar to the unknown one."""
    others = {"REDIS_HOST": "h", "HOSTNAME": "h", "KUBERNETES_PORT": "1", "AI_SERVICE_PORT": "tcp://10.0.0.1:80"}
    with Service(tmp_path, "http://127.0.0.1:1", MONGODB_URL="mongodb://h", **others) as service:
        found = [(line["variable"], line["meant"]) for line in service.find("setting_unknown")]
        assert found == [("MONGODB_URL", "MONGODB_URI")]


def test_removed_setting_is_a_warning_everywhere(tmp_path: Path) -> None:
    """The service starts; its log, `check` and `settings` name the variable and the value that is in force."""
    service = Service(tmp_path, "http://127.0.0.1:1", COLUMNS="300", PLUGINS_SAFE_MODE="1")
    service.environment["MAX_STALLS"] = "none"
    warning = "MAX_STALLS has no effect since 0.2.0: the value is fixed, 3"
    with service:
        found = [(line["variable"], line["since"], line["fixed"]) for line in service.find("setting_removed")]
        assert found == [("MAX_STALLS", "0.2.0", "3")] and service.find("setting_unknown") == []
    for command in ("check", "settings"):
        done = subprocess.run(
            [sys.executable, "run.py", command], cwd=ROOT, env=service.environment, capture_output=True, text=True
        )
        assert warning in done.stdout + done.stderr, command


@pytest.mark.fault("E28")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jwt_secret", "jwt_secret cannot be used: Is a directory"),
        ("assets.sqlite", "assets.sqlite is no asset store, or damaged"),
    ],
)
def test_folder_in_place_of_a_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """A folder in DATA_DIR with the name of one of its files is refused."""
    (tmp_path / name).mkdir(mode=0o700)
    assert text in refusal(tmp_path, ("serve",), {"JWT_SECRET": ""})


@pytest.mark.fault("E28")
def test_demo_refuses_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A service.json that names no service is ignored; a service.log that is a folder is refused in one line."""
    (tmp_path / "service.json").write_text("[1]")
    (tmp_path / "service.log").mkdir()
    assert "service.log cannot be used: Is a directory" in refusal(tmp_path, ("demo",), {})
