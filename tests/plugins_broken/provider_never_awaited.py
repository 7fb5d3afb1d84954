# Does not await its own coroutine. | was never awaited
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        self.warm()
        return Analysis()

    async def warm(self):
        pass


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
