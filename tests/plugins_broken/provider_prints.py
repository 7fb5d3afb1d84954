# Prints to standard output. | analyze prints ('asked about sneaker')
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        print("asked about", request.category)
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
