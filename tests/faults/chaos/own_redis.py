"""How the files of an embedded Redis are damaged while it runs: it finds out when it is started again."""

from __future__ import annotations

from pathlib import Path


def damage_manifest(folder: Path) -> None:
    """The list of its files says nothing."""
    _newest(folder, "*.manifest").write_text("manifest of nothing\n")


def damage_commands(folder: Path) -> None:
    """The file of commands begins with none."""
    path = _newest(folder, "*.incr.aof")
    path.write_bytes(b"this is no command\r\n" + path.read_bytes())


def cut_off_last_command(folder: Path) -> None:
    """As after a power cut; all before it is read."""
    path = _newest(folder, "*.incr.aof")
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES = (damage_manifest, damage_commands, cut_off_last_command)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(f"appendonlydir/{pattern}"), key=lambda path: path.stat().st_mtime)
