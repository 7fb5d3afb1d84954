"""Real nginx and Caddy from PATH, with the files of deploy/, in front of processes of the service."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.requirements import program
from tests.server_process import wait_until_listening
from tests.service import ROOT, inherited
from tests.toxiproxy import free_port

START_SECONDS = 20.0
NGINX_CONF, CADDYFILE = ROOT / "deploy/nginx/pipeline.conf", ROOT / "deploy/caddy/Caddyfile"
# A configuration as the nginx documentation shows it, on its pages about proxies and about WebSockets.
MINIMAL_CONF = """
upstream pipeline {
    server 127.0.0.1:8081;
    server 127.0.0.1:8082;
}
server {
    listen 80;
    access_log /var/log/nginx/pipeline.log;
    location / {
        proxy_pass http://pipeline;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
    }
}
"""
NGINX_MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/pipeline.conf;
}}
"""


class Proxy:
    """One proxy process in front of these ports of the service; `with` starts and ends it.

    command: a subclass sets it.
    environment: of the process; a subclass may add to it.
    """

    name = ""
    command: Sequence[str]

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.port = free_port()
        self.folder, self.ports = folder / f"{self.name}{self.port}", ports
        self.folder.mkdir(parents=True)
        self.environment = inherited()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Proxy:
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self._process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        wait_until_listening(self._process, self.port, START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_SECONDS)

    @property
    def log(self) -> str:
        """The log of the proxy so far."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


class Nginx(Proxy):
    """nginx with deploy/nginx/pipeline.conf, or with another text."""

    name = "nginx"

    def __init__(
        self, folder: Path, ports: Sequence[int], text: str = "", *, changes: Mapping[str, str] = {}
    ) -> None:
        """Write the configuration.

        text: a configuration, by default deploy/nginx/pipeline.conf.
        changes: texts of the configuration, each of which it has once, and their replacements.
        """
        super().__init__(folder, ports)
        changes = {
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "/var/log/nginx/pipeline.log": f"{self.folder}/access.log",
            "127.0.0.1:8081": f"127.0.0.1:{ports[0]}",
            "127.0.0.1:8082": f"127.0.0.1:{ports[-1]}",
        } | dict(changes)
        text = text or NGINX_CONF.read_text()
        for before, after in changes.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        if len(set(ports)) == 1:
            text = "\n".join(line for line in text.splitlines() if f"server 127.0.0.1:{ports[0]}" not in line)
            text = text.replace("upstream pipeline {", f"upstream pipeline {{ server 127.0.0.1:{ports[0]} max_fails=0;")
        (self.folder / "pipeline.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(NGINX_MAIN.format(folder=self.folder, user=user))
        # Debian's nginx is not on every user's PATH.
        nginx = program("nginx", "/usr/sbin/nginx")
        self.command = (nginx, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"))


class Caddy(Proxy):
    """Caddy with deploy/caddy/Caddyfile."""

    name = "caddy"

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        super().__init__(folder, ports)
        self.command = (program("caddy"), "run", "--adapter", "caddyfile", "--config", str(CADDYFILE))
        self.environment |= {
            "HOME": str(self.folder),
            "CADDY_ADMIN": f"127.0.0.1:{free_port()}",
            "PIPELINE_SITE": self.url,
            "PIPELINE_UPSTREAMS": " ".join(f"127.0.0.1:{port}" for port in dict.fromkeys(ports)),
        }
