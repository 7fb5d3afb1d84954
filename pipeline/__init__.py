"""The AI queue pipeline: upload a photo, get an answer at once, see the AI's result arrive on a WebSocket."""

from pathlib import Path

__version__ = "0.2.0"

# pipeline.plugins and pipeline.contracts are installed beside this file. In a checkout they are the folders plugins/
# and contracts/ next to this one. By those names alone they would clash with those of a project that has the same.
_checkout = Path(__file__).parents[1]
if not (Path(__file__).parent / "plugins").is_dir() and (_checkout / "plugins" / "ai_http.py").is_file():
    __path__.append(str(_checkout))
