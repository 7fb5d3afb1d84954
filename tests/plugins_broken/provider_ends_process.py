# Ends the process. | it ends the process (exit code 3
import os

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        os._exit(3)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
