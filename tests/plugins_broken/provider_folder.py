# Changes the working directory. | it changes the working directory
import os

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        os.chdir("/")
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
