# Declares max_in_flight as a text. | max_in_flight is no whole number
from pipeline.hooks import Analysis, hookimpl


class Broken:
    max_in_flight = "4"

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
