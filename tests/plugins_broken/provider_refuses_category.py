# Refuses every category except sneaker. | declare `categories`
from pipeline.errors import PermanentJobError

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        if request.category != "sneaker":
            raise PermanentJobError("Sneakers only")
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
