"""What the AI providers `openai`, `anthropic` and `gemini` share: prompt, photo, answer, waits and prices."""
