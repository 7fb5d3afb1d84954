# Sets an environment variable. | changes environment variables (ACME_KEY)
import os

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        os.environ["ACME_KEY"] = request.job_id
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
