# Opens a socket in each call and does not close it. | sockets stay open after close
import socket

from pipeline.hooks import Analysis, hookimpl


class Broken:
    def __init__(self):
        self.sockets = []

    async def analyze(self, request):
        self.sockets.append(socket.socket())
        return Analysis()


@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
