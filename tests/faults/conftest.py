"""Fixtures that several modules of fault tests use."""

from __future__ import annotations

from tests.faults.asset_removal import removal  # noqa: F401
from tests.faults.embedded_servers import environment, server  # noqa: F401
from tests.faults.mongo_uris import local_uri  # noqa: F401
from tests.faults.sweeping import media, sweeping  # noqa: F401
