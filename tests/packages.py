"""Installs packages of plugins for a service, as files on the import path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, **sources: str) -> dict[str, str]:
    """Write a package with one entry point for each source; return the settings with which the service finds them.

    sources: the code of each plugin, by the name of its package.
    """
    for name, source in sources.items():
        dist_info = folder / f"{name}-1.0.dist-info"
        dist_info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (dist_info / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
    return {"PYTHONPATH": str(folder)}
