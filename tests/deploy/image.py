"""The container image that .ci/image has built, and its processes as a container engine runs them.

`buildah run` cannot make the root read-only without a container runtime. So this module starts a process as a runtime
does: in its own namespaces for mounts and processes, as process 1 without capabilities, with the image mounted
read-only, /data as a volume and /tmp in memory. Only the network is that of the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from signal import Signals
from typing import Any

from tests.faults.processes import children
from tests.requirements import program, require
from tests.service import Service

# Arguments: the image's files, an empty folder, the volume, the user, and the command.
START = """
set -eu
image="$1" root="$2" volume="$3" user="$4"; shift 4
mount --bind "$image" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$volume" "$root/data"
export PATH="/opt/pipeline/bin:$PATH" HOME=/tmp
exec chroot "$root" setpriv --reuid="$user" --regid=0 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


def buildah(*arguments: str) -> str:
    """Return what buildah prints."""
    command = [program("buildah"), "--log-level", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Image:
    """A working container made from the image, with its files mounted; `with` removes it."""

    def __init__(self) -> None:
        self.name = os.environ.get("PIPELINE_IMAGE", "")
        require(bool(self.name), "needs an image: .ci/image makes one, PIPELINE_IMAGE names it")
        self.container = buildah("from", "--pull-never", self.name)
        self.files = Path(buildah("mount", self.container))
        inspected = json.loads(buildah("inspect", "--type", "image", self.name))
        self.config: dict[str, Any] = inspected["Docker"]["config"]
        self.history = "\n".join(each.get("created_by", "") for each in inspected["Docker"]["history"])
        self.layer_bytes = [int(each["size"]) for each in json.loads(inspected["Manifest"])["layers"]]

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        buildah("rm", self.container)

    @property
    def variables(self) -> dict[str, str]:
        """The environment that the image gives its processes."""
        return dict(each.split("=", 1) for each in self.config["Env"])

    def start_command(self, folder: Path, user: int) -> list[str]:
        """Return the command that starts a process on a read-only root; the caller appends the command of the process.

        folder: gets an empty folder `root` and the volume `data`. Like an engine, the function gives the volume the
        owner and the rights that /data has in the image.
        """
        root, volume = folder / "root", folder / "data"
        root.mkdir(exist_ok=True)
        if not volume.exists():
            found = (self.files / "data").stat()
            volume.mkdir()
            os.chown(volume, found.st_uid, found.st_gid)
            volume.chmod(found.st_mode & 0o7777)
        namespaces = [program("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
        return [*namespaces, "sh", "-c", START, "sh", str(self.files), str(root), str(volume), str(user)]

    def run(self, folder: Path, user: int, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a read-only root."""
        variables = self.variables | {"PATH": os.environ["PATH"]} | environment
        full_command = [*self.start_command(folder, user), *command]
        return subprocess.run(full_command, env=variables, capture_output=True, text=True, timeout=120, check=False)


class ContainerService(Service):
    """The service as process 1 of a container."""

    def __init__(self, image: Image, folder: Path, user: int, **environment: str) -> None:
        self.python, *self.command = [*image.start_command(folder, user), *image.config["Entrypoint"], "serve"]
        super().__init__(folder / "data", **environment)
        self.environment = image.variables | self.environment | {"DATA_DIR": "/data", "PATH": os.environ["PATH"]}

    def signal(self, number: Signals) -> None:
        """Send the signal to process 1 of the container, the child of `unshare`."""
        os.kill(children(self.pid)[0], number)
