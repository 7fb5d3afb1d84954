"""Several secrets and public keys at the same time, while one is replaced, and secrets in files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr, ValidationError

from pipeline import settings as settings_module
from pipeline.auth import TokenVerifier, make_token
from pipeline.commands.checks.findings import Finding, Mark, Masker
from pipeline.errors import ConfigurationError, Unauthorized
from pipeline.settings import FROM_FILES, Settings

# Each has 32 bytes or more, and characters that are separators in other settings.
NEW, OLD = "n-Xk7Jw0q,pXz2Vf;Lr9TnB4cYd8HsGm", "o-Qe5Rt6,Yu8Io9=Pa1Sd2Fg3Hj4Kl5Zx"
OLDER = " a pass phrase, with blanks at its ends and in it "
UNLISTED = "f-Zx1Cv2Bn3Mq4We5Rt6Yu7Io8Pa9Sd0"
RSA_KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def changing(*old: str) -> Settings:
    return Settings(jwt_secret=SecretStr(NEW), jwt_secrets_old=SecretStr("\n".join(old)))


def signed(key: Any, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": int(time.time()) + 60} | claims, key, algorithm=algorithm)


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def user_of(settings: Settings, token: str) -> str:
    return asyncio.run(TokenVerifier(settings).verify(token)).user_id


@pytest.mark.fault("O18")
@pytest.mark.parametrize("secret", [NEW, OLD, OLDER])
def test_tokens_of_old_secrets_are_accepted_while_they_are_listed(secret: str) -> None:
    """The service accepts tokens of a listed old secret, and no longer; a secret may have commas and blanks."""
    assert user_of(changing(OLD, OLDER), signed(secret)) == "ann"
    if secret != NEW:
        with pytest.raises(Unauthorized):
            user_of(changing(), signed(secret))


@pytest.mark.fault("O18")
def test_only_the_new_secret_signs() -> None:
    """A new token is valid after the old secret is removed from the settings."""
    assert user_of(changing(), make_token(changing(OLD), "ann", None, 60)) == "ann"


@pytest.mark.parametrize(
    "token",
    [signed(UNLISTED), signed(OLD, exp=1), signed(OLD, sub="a/b"), signed(OLD * 2, "HS512"), signed(OLD)[:-3]],
    ids=["another secret", "expired", "no user", "another algorithm", "cut off"],
)
def test_bad_token_of_an_old_secret_is_refused(token: str) -> None:
    """The claims and the algorithm of a token with an old secret are checked as for the new secret."""
    with pytest.raises(Unauthorized, match="Invalid token"):
        user_of(changing(OLD, OLDER), token)


def test_log_says_that_old_secrets_are_still_in_use() -> None:
    """One line a minute for each old secret in use, without the secret or a token, shows which is still needed."""
    verifier = TokenVerifier(changing(OLD, OLDER))

    async def verify_all() -> None:
        for secret in (NEW, OLD, OLDER, OLDER, NEW):
            await verifier.verify(signed(secret))

    with structlog.testing.capture_logs() as lines:
        with pytest.raises(Unauthorized):
            asyncio.run(verifier.verify(signed(OLD, exp=1)))
        assert not lines, "an expired token does not count as use of its secret"
        asyncio.run(verify_all())
    assert lines == [{"event": "old_secret_used", "number": number, "log_level": "info"} for number in (1, 2)]


@pytest.mark.parametrize(
    ("old", "fault"),
    [
        (f"{OLD}\nshort", "number 2 must have at least 32 bytes"),
        ("x" * 64, "number 1 is too easy to guess"),
        ("\n".join([OLD] * 5), "has 5 secrets"),
        (OLD.replace("-", "\n"), "number 1 must have at least 32 bytes"),
    ],
)
def test_old_secrets_are_as_strong_as_new_ones(old: str, fault: str) -> None:
    """A weak old secret stops the start; the message does not contain the secret."""
    with pytest.raises(ValidationError, match=f"JWT_SECRETS_OLD.* {fault}") as caught:
        changing(old)
    assert OLD not in caught.value.errors(include_input=False)[0]["msg"]


def test_old_secrets_require_a_secret() -> None:
    """With a public key old secrets are refused: they would be a second way to sign in."""
    with pytest.raises(ValidationError, match="JWT_SECRETS_OLD goes with JWT_SECRET only"):
        Settings(jwt_public_key=pem(EC_KEY), jwt_secrets_old=SecretStr(OLD))


def test_old_secrets_are_hidden() -> None:
    """No old secret is in the output of `check` or in a repr."""
    settings = changing(OLD, OLDER)
    assert OLD not in repr(settings)
    found = Masker(settings).masked(Finding(Mark.FAILED, "redis", f"{OLD} {OLDER} {NEW}"))
    assert not any(secret in found.detail for secret in (OLD, OLDER, NEW))


@pytest.mark.fault("O18")
@pytest.mark.parametrize("glue", ["\n", "", "\\n"], ids=["a line end", "nothing", "an escaped line end"])
def test_several_public_keys_are_tried(glue: str) -> None:
    """A token of any of the public keys is accepted, also of two kinds; the algorithm must be that of its key."""
    keys = [pem(key) for key in (*RSA_KEYS, EC_KEY)]
    text = glue.join(keys).replace("\n", "\\n" if glue == "\\n" else "\n")
    settings = Settings(jwt_public_key=text)
    for key, algorithm in ((RSA_KEYS[0], "RS256"), (RSA_KEYS[1], "RS256"), (EC_KEY, "ES256")):
        assert user_of(settings, signed(key, algorithm)) == "ann"
    unlisted = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for token in (signed(unlisted, "RS256"), signed(RSA_KEYS[0], "RS512"), jwt.encode({"sub": "ann"}, "", "none")):
        with pytest.raises(Unauthorized):
            user_of(settings, token)
    hmac = signed(UNLISTED).split(".")
    with pytest.raises(Unauthorized):
        user_of(settings, ".".join(hmac))


@pytest.mark.parametrize(
    "text",
    [
        pem(EC_KEY) + pem(RSA_KEYS[0])[:200],
        pem(EC_KEY) + pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        pem(EC_KEY) * 6,
    ],
    ids=["the second cut off", "the second weak", "six"],
)
def test_every_public_key_must_be_valid(text: str) -> None:
    """One invalid or weak key, or too many keys, stop the start."""
    with pytest.raises(ConfigurationError, match="JWT_PUBLIC_KEY"):
        TokenVerifier(Settings(jwt_public_key=text))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment without settings of the service."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


FILES = {
    "REDIS_URL": "redis://:hidden@redis:6379/1",
    "MONGODB_URI": "mongodb://app:hidden@mongo/photos",
    "CLOUDINARY_URL": "cloudinary://123:hidden@cloud",
    "JWT_SECRET": NEW,
    "JWT_SECRETS_OLD": f"{OLD}\n{OLDER}",
    "JWT_PUBLIC_KEY": pem(EC_KEY).rstrip("\n"),
}


@pytest.mark.parametrize("name", FROM_FILES)
def test_secret_settings_may_be_in_files(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NAME_FILE names a file with the secret; its line end is removed, and NAME_FILE is a known variable."""
    (folder / "secret").write_text(FILES[name] + "\n")
    monkeypatch.setenv(f"{name}_FILE", str(folder / "secret"))
    settings = settings_module.load()
    value = getattr(settings, name.lower())
    assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == FILES[name]
    assert settings.unknown_variables == ()


@pytest.mark.parametrize("content", [NEW + "\r\n", NEW + "\n\n", "\ufeff" + NEW])
def test_line_ends_and_byte_order_mark_are_no_part_of_a_secret(
    content: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an editor adds is removed: with it the service would refuse all tokens for no visible reason."""
    (folder / "secret").write_bytes(content.encode())
    monkeypatch.setenv("JWT_SECRET_FILE", str(folder / "secret"))
    assert settings_module.load().jwt_secret.get_secret_value() == NEW


def test_env_file_may_name_secret_files(folder: Path) -> None:
    """A line of `.env` may name the file of a secret, also in small letters."""
    (folder / "secret").write_text(NEW)
    (folder / ".env").write_text("jwt_secret_file=secret\n")
    assert settings_module.load().jwt_secret.get_secret_value() == NEW


def test_faults_of_secret_files_are_all_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error has the faults of all secret files and settings; it does not contain the content of a file."""
    (folder / "weak").write_text("s3cr3t")
    (folder / "empty").write_text("\n")
    for name, value in {
        "JWT_SECRET_FILE": "weak",
        "REDIS_URL_FILE": "missing",
        "MONGODB_URI_FILE": "empty",
        "CLOUDINARY_URL": "cloudinary://1:2@c",
        "CLOUDINARY_URL_FILE": "weak",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        settings_module.load()
    for fault in ("JWT_SECRET must", "REDIS_URL_FILE: the file cannot be read", "MONGODB_URI_FILE: the file is empty"):
        assert fault in caught.value.message
    assert "CLOUDINARY_URL and CLOUDINARY_URL_FILE are both set" in caught.value.message
    assert "s3cr3t" not in caught.value.message
