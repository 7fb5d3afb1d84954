# Declares rate as a tuple. | rate is no Rate
from pipeline.hooks import Analysis, hookimpl


class Broken:
    rate = (1, 2)

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
