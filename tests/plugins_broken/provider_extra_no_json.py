# Returns an extra that is not JSON. | extra
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis(extra={"seen": {1, 2}})


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
