# Calls sys.exit in analyze. | analyze calls sys.exit
import sys

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        sys.exit(3)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
