# Fails in one of several simultaneous calls, while the rate delays the other ones. | when 5 calls ran at once
from pipeline.errors import RetryableJobError
from pipeline.hooks import Analysis, Rate, hookimpl


class Broken:
    rate = Rate(20)

    async def analyze(self, request):
        if request.asset_id.endswith("1"):
            raise RetryableJobError("The service fails")
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
