# Returns a dict instead of an Analysis. | analyze returned dict, not Analysis
from pipeline.hooks import hookimpl


class Broken:
    async def analyze(self, request):
        return {"brand": "Nike"}


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
