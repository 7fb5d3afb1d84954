# Returns a model that is a number. | model has a value that is not a text
from pipeline.hooks import Analysis, Attribute, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(model=Attribute(90, 0.9))


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
