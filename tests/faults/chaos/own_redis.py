"""Damages the files of an embedded Redis while it runs: the server notices at its next start."""

from __future__ import annotations

from pathlib import Path


def damage_manifest(folder: Path) -> None:
    """Replace the list of its files by a text that names no file."""
    _newest(folder, "*.manifest").write_text("manifest of nothing\n")


def damage_commands(folder: Path) -> None:
    """Let the file of commands begin with a line that is no command."""
    path = _newest(folder, "*.incr.aof")
    path.write_bytes(b"this is no command\r\n" + path.read_bytes())


def cut_off_last_command(folder: Path) -> None:
    """Cut the file as a power cut does; the server reads all commands before it."""
    path = _newest(folder, "*.incr.aof")
    path.write_bytes(path.read_bytes()[:-3])


DAMAGES = (damage_manifest, damage_commands, cut_off_last_command)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(f"appendonlydir/{pattern}"), key=lambda path: path.stat().st_mtime)
