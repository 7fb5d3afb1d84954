# Returns the same extra in each call and changes it. | analyze changes a result that it has returned
from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        self.extra = {}

    async def analyze(self, request):
        self.extra["asset"] = request.asset_id
        return Analysis(extra=self.extra)


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
