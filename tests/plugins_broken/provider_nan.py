# Returns NaN as a confidence. | confidence
from pipeline.hooks import Analysis, Attribute, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(brand=Attribute("Nike", float("nan")))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
