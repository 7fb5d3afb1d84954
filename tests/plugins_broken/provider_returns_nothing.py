# Returns nothing. | analyze returned NoneType, not Analysis
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
