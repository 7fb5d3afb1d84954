# Ignores all warnings. | it sets that warnings are ignored
import warnings

from pipeline.hooks import Analysis, hookimpl

warnings.filterwarnings("ignore")


class Broken:
    async def analyze(self, request):
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
