"""The AI queue pipeline: upload a photo, get an answer at once, see the AI's result arrive on a WebSocket."""

__version__ = "0.1.0"
