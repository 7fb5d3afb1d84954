"""Checks of this machine and of what is set: variables, DATA_DIR, address, open files, tokens."""

from __future__ import annotations

import asyncio
import resource
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice

from pipeline import data_dir
from pipeline.auth import TokenVerifier
from pipeline.commands import running
from pipeline.commands.checks.findings import Finding, Mark, shown_address
from pipeline.disk import Disk
from pipeline.errors import Unauthorized
from pipeline.handlers.server import RESERVED_FILES
from pipeline.keys import KeySet
from pipeline.settings import Settings

# More of the files that are too open are not counted.
OPEN_LIMIT = 1000
# Less free space than this lasts for a hundred photos.
LOW_DISK_BYTES = 1_000_000_000


class HereChecks:
    """What can be told without asking any other service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def variables(self) -> AsyncIterator[Finding]:
        """Find variables that were settings before, or were perhaps meant to be settings."""
        for removed in self._settings.removed_variables:
            yield Finding(Mark.WARNING, "settings", str(removed), f"remove {removed.variable}")
        for each in self._settings.unknown_variables:
            remedy = f"did you mean {each.meant}?" if each.meant else "see `run.py settings`"
            yield Finding(Mark.WARNING, "settings", f"there is no setting {each.variable}", remedy)

    async def data_folder(self) -> AsyncIterator[Finding]:
        """Write there, see how much room there is and who may read it."""
        folder = self._settings.data_dir
        await Disk(folder, self._settings.max_upload_bytes).check()
        yield Finding(Mark.OK, "data folder", f"{folder.absolute()} is writable and has room for the largest upload")
        if found := await asyncio.to_thread(lambda: list(islice(data_dir.open_paths(folder), OPEN_LIMIT))):
            more = " or more" if len(found) == OPEN_LIMIT else ""
            detail = f"other accounts may read {len(found)}{more} files and folders there, {found[0]} among them"
            remedy = f"start the service, which closes them, or chmod -R go-rwx {folder.absolute()}"
            yield Finding(Mark.WARNING, "data folder", detail, remedy)
        if (free := shutil.disk_usage(folder).free) < LOW_DISK_BYTES:
            detail = f"only {free // 1_000_000} MB are free there"
            yield Finding(Mark.WARNING, "data folder", detail, "make room there or set DATA_DIR")

    async def address(self) -> AsyncIterator[Finding]:
        """Find out whether the service can listen."""
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        if service := await asyncio.to_thread(running.find_service, settings):
            yield Finding(Mark.OK, "address", f"a service runs on this DATA_DIR at {service.address}")
        elif fault := running.address_fault(settings):
            yield Finding(Mark.FAILED, "address", f"{where}: {fault}", "set HOST or PORT, or stop what listens there")
        else:
            yield Finding(Mark.OK, "address", f"{where} is free")

    async def files(self) -> AsyncIterator[Finding]:
        """Compare the limit of open files, which the service raises as far as it may, with what it needs."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted, limit = self._settings.max_sockets, hard
        needed = wanted + RESERVED_FILES
        remedy = f"set ulimit -n {needed} (LimitNOFILE={needed} of systemd)"
        if limit == resource.RLIM_INFINITY or limit >= needed:
            yield Finding(Mark.OK, "open files", "enough for MAX_SOCKETS")
        elif limit <= RESERVED_FILES:
            detail = f"the limit is {limit}, and {RESERVED_FILES} are kept for stores and plugins: no client gets in"
            yield Finding(Mark.FAILED, "open files", detail, remedy)
        else:
            detail = f"the limit is {limit}: {limit - RESERVED_FILES} connections, and MAX_SOCKETS is {wanted}"
            yield Finding(Mark.WARNING, "open files", detail, f"{remedy}, or a smaller MAX_SOCKETS")

    async def tokens(self) -> AsyncIterator[Finding]:
        """Read what tokens are checked with."""
        settings = self._settings
        if settings.jwt_jwks_url:
            # Any key id tells whether the set can be had; that there is no such key is a good answer.
            with suppress(Unauthorized):
                await KeySet(settings.jwt_jwks_url).find("check")
            yield Finding(Mark.OK, "tokens", f"the key set at {shown_address(settings.jwt_jwks_url)} can be read")
        elif settings.jwt_public_key:
            TokenVerifier(settings)
            yield Finding(Mark.OK, "tokens", "JWT_PUBLIC_KEY is a key for RS256 or ES256")
        elif settings.jwt_secret.get_secret_value():
            old = len(settings.old_secrets)
            yield Finding(Mark.OK, "tokens", "JWT_SECRET, HS256" + (f", and {old} of JWT_SECRETS_OLD" if old else ""))
        else:
            if (settings.data_dir / data_dir.SECRET_NAME).exists():
                data_dir.jwt_secret(settings.data_dir)  # raises when it is damaged
            yield Finding(Mark.OK, "tokens", "embedded: a secret generated into DATA_DIR")
