# Returns an extra of a type that it has not declared. | extra_fields do not allow
from pipeline.hooks import Analysis, hookimpl


class Broken:
    extra_fields = {"size": {"type": "string"}}

    async def analyze(self, request):
        return Analysis(extra={"size": 42})


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
