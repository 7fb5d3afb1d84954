"""Checks of this machine and its settings: variables, DATA_DIR, address, open files, tokens."""

from __future__ import annotations

import asyncio
import resource
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice

from pipeline import data_dir
from pipeline.auth import TokenVerifier
from pipeline.commands import service_target
from pipeline.commands.checks.findings import Finding, Mark, shown_address
from pipeline.disk import Disk
from pipeline.errors import Unauthorized
from pipeline.handlers.server import RESERVED_FILES
from pipeline.keys import KeySet
from pipeline.settings import Settings

# At most so many files that other accounts may read are counted.
READABLE_LIMIT = 1000
# Enough for about a hundred photos.
LOW_DISK_BYTES = 1_000_000_000


class MachineChecks:
    """The checks that need no other service, except for the keys of JWT_JWKS_URL."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def variables(self) -> AsyncIterator[Finding]:
        """Find environment variables that were settings before, and those that look like misspelt settings."""
        for removed in self._settings.removed_variables:
            yield Finding(Mark.WARNING, "settings", str(removed), f"remove {removed.variable}")
        for each in self._settings.unknown_variables:
            remedy = f"did you mean {each.meant}?" if each.meant else "see `run.py settings`"
            yield Finding(Mark.WARNING, "settings", f"there is no setting {each.variable}", remedy)

    async def data_folder(self) -> AsyncIterator[Finding]:
        """Write a file there; check the free space and the access rights."""
        folder = self._settings.data_dir
        await Disk(folder, self._settings.max_upload_bytes).check()
        yield Finding(Mark.OK, "data folder", f"{folder.absolute()} is writable and has room for the largest upload")
        if readable := await asyncio.to_thread(lambda: list(islice(data_dir.open_paths(folder), READABLE_LIMIT))):
            more = " or more" if len(readable) == READABLE_LIMIT else ""
            detail = f"other accounts may read {len(readable)}{more} files and folders there, {readable[0]} among them"
            remedy = f"start the service, which closes them, or chmod -R go-rwx {folder.absolute()}"
            yield Finding(Mark.WARNING, "data folder", detail, remedy)
        if (free := shutil.disk_usage(folder).free) < LOW_DISK_BYTES:
            detail = f"only {free // 1_000_000} MB are free there"
            yield Finding(Mark.WARNING, "data folder", detail, "make room there or set DATA_DIR")

    async def address(self) -> AsyncIterator[Finding]:
        """Check whether the service can listen on HOST and PORT."""
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        if service := await asyncio.to_thread(service_target.find_service, settings):
            yield Finding(Mark.OK, "address", f"a service runs on this DATA_DIR at {service.address}")
        elif fault := service_target.address_fault(settings):
            yield Finding(Mark.FAILED, "address", f"{where}: {fault}", "set HOST or PORT, or stop what listens there")
        else:
            yield Finding(Mark.OK, "address", f"{where} is free")

    async def open_files(self) -> AsyncIterator[Finding]:
        """Compare the hard limit of open files, up to which the service raises its own, with MAX_SOCKETS."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted, limit = self._settings.max_sockets, hard
        needed = wanted + RESERVED_FILES
        remedy = f"set ulimit -n {needed} (LimitNOFILE={needed} of systemd)"
        if limit == resource.RLIM_INFINITY or limit >= needed:
            yield Finding(Mark.OK, "open files", "enough for MAX_SOCKETS")
        elif limit <= RESERVED_FILES:
            detail = f"the limit is {limit}, and stores and plugins need {RESERVED_FILES}: none are left for clients"
            yield Finding(Mark.FAILED, "open files", detail, remedy)
        else:
            detail = f"the limit is {limit}: {limit - RESERVED_FILES} connections, and MAX_SOCKETS is {wanted}"
            yield Finding(Mark.WARNING, "open files", detail, f"{remedy}, or a smaller MAX_SOCKETS")

    async def tokens(self) -> AsyncIterator[Finding]:
        """Read the keys with which tokens are checked."""
        settings = self._settings
        if settings.jwt_jwks_url:
            # To look for any key id reads the set. It has no such key, which is no fault.
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
