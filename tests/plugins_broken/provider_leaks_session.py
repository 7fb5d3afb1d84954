# Does not close its HTTP session. | aiohttp.ClientSession is not closed
import aiohttp

from pipeline.hooks import Analysis, hookimpl


class Broken:
    async def analyze(self, request):
        self.session = aiohttp.ClientSession()
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
