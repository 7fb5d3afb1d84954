"""A real S3 server for tests: moto, in its own process. It checks the access key and the signature in headers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tests.requirements import require
from tests.server_process import wait_until_listening
from tests.toxiproxy import free_port

START_SECONDS = 20.0
REGION = "us-east-1"
ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
# The calls that create the user and its keys; the user cannot sign them.
UNCHECKED_CALLS = 3


class MotoServer:
    """A server on its own port with one user, that may do everything; `with` starts and stops it."""

    def __init__(self) -> None:
        # Checked first: a skipped test must not use a port.
        require(all(map(importlib.util.find_spec, ("moto", "flask", "boto3"))), "needs moto[server]")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Keys of no user, for the first calls.
        self.access_key_id = self.secret_access_key = "none"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MotoServer:
        self._start()
        iam = self._client("iam")
        iam.create_user(UserName="pipeline")
        iam.put_user_policy(UserName="pipeline", PolicyName="everything", PolicyDocument=json.dumps(ALLOW_ALL))
        key = iam.create_access_key(UserName="pipeline")["AccessKey"]
        self.access_key_id, self.secret_access_key = key["AccessKeyId"], key["SecretAccessKey"]
        self.s3 = self._client("s3")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def settings(self, url: str) -> dict[str, str]:
        """Return the settings with which the storage `object` stores images at that URL.

        url: s3://BUCKET or s3://BUCKET/FOLDER.
        """
        return {
            "PLUGIN_OBJECT_URL": url,
            "PLUGIN_OBJECT_ENDPOINT": self.url,
            "PLUGIN_OBJECT_REGION": REGION,
            "PLUGIN_OBJECT_ACCESS_KEY_ID": self.access_key_id,
            "PLUGIN_OBJECT_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def keys(self, bucket: str) -> list[str]:
        """Return the names of all objects in the bucket."""
        return [each["Key"] for each in self.s3.list_objects_v2(Bucket=bucket).get("Contents", [])]

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Turn off the check of access during the block: moto cannot check the signature of a signed URL."""
        self._check_after("inf")
        try:
            yield
        finally:
            self._check_after("0")

    def _check_after(self, calls: str) -> None:
        url = f"{self.url}/moto-api/reset-auth"
        request = urllib.request.Request(url, calls.encode(), {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request, timeout=START_SECONDS):
            pass

    def _start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(UNCHECKED_CALLS)}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until_listening(self._process, self.port, START_SECONDS)

    def _client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
        )
