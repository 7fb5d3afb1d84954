# Calls sys.exit when it is not happy. | analyze calls sys.exit
import sys

from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        sys.exit(3)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
