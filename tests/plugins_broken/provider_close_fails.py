# Fails in close when there was no call before. | close raised AttributeError
from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        return Analysis()

    async def close(self):
        await self.session.close()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
