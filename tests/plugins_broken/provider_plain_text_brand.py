# Returns a brand that is a text. | brand is str, not Attribute
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(brand="Nike")


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
