# check returns False. | check returns False
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis()

    async def check(self):
        return False


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
