# Returns a confidence that is a text. | brand has a confidence that is not a number
from pipeline.hooks import Analysis, Attribute, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(brand=Attribute("Nike", "0.9"))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
