"""The common parts of the AI providers `openai`, `anthropic` and `gemini`: prompt, photo, answer, waits and prices."""
