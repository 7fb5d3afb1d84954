"""Installs packages of plugins for a service: as files on its import path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, **sources: str) -> dict[str, str]:
    """Write packages of these names into the folder, each with one entry point; return the settings to find them."""
    for name, source in sources.items():
        dist_info = folder / f"{name}-1.0.dist-info"
        dist_info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (dist_info / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
    return {"PYTHONPATH": str(folder)}
