# Fails in start. | start raised KeyError
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def start(self, context):
        self.key = {}["key"]

    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
