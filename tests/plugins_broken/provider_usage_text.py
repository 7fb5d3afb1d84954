# Returns a cost that is a text. | usage.cost
from pipeline.hooks import Analysis, Usage, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(usage=Usage(cost="0.01"))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
