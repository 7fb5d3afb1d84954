# Returns a confidence in percent. | brand has a confidence of 93, not 0 to 1
from pipeline.hooks import Analysis, Attribute, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(brand=Attribute("Nike", 93))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
