# Cannot be imported. | ZeroDivisionError
from pipeline.hooks import Analysis, hookimpl


1 / 0


class Broken:
    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
