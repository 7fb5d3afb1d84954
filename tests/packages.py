"""Installs packages of plugins for a service of its own: really, as files on its import path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, **sources: str) -> dict[str, str]:
    """Write packages of these names into the folder, each with one entry point; return the settings to find them."""
    for name, source in sources.items():
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[ai_queue_pipeline]\n{name} = {name}\n")
    return {"PYTHONPATH": str(folder)}
