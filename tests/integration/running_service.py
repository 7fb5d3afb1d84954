"""Commands with the settings of a running service, and steady uploads to that service."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import httpx

from tests.factories import make_image
from tests.service import ROOT, Service


def command(service: Service, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the settings of the service."""
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        env=service.environment | changes,
        timeout=120,
    )


def read(service: Service, asset_id: str) -> dict[str, Any]:
    """Return the asset once it is finished."""
    url = f"{service.url}/api/assets/{asset_id}?wait=30"
    asset: dict[str, Any] = httpx.get(url, headers=service.headers(), timeout=40).json()["data"]
    return asset


def pictures(asset: dict[str, Any]) -> list[str]:
    """Return the URLs of the images that the service stores for the asset: the original and the previews."""
    images = asset["images"]
    return [images["original"]["url"], *(each["url"] for each in (images["previews"] or {}).values())]


class Uploads:
    """Uploads up to ten photos a second until the block ends. `refused` has the text of each refusal."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.accepted: list[str] = []
        self.refused: list[str] = []
        self.has_started = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._upload)

    def __enter__(self) -> Uploads:
        self._thread.start()
        assert self.has_started.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _upload(self) -> None:
        number = 0
        while not self._is_over.wait(0.1):
            number += 1
            response = self.service.upload(image=make_image("JPEG", seed=number))
            if response.status_code == 202:
                self.accepted.append(response.json()["data"]["assetId"])
            else:
                self.refused.append(response.text)
            if number == 5:
                self.has_started.set()
