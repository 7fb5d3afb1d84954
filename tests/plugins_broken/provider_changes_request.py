# Changes the request it is given. | analyze changes its request
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        object.__setattr__(request, "category", "other")
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
