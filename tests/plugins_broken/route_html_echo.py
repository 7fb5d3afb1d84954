# Writes a text of the request into HTML. | shows in HTML what it is asked
from pipeline.hooks import PluginReply, hookimpl


class Broken:
    async def notify(self, notification):
        pass

    def register_routes(self, routes):
        routes.add("GET", "/items/{id}", self.show)

    async def show(self, request):
        page = f"<h1>{request.path_params['id']}</h1>"
        return PluginReply(body=page.encode(), content_type="text/html; charset=utf-8")


@hookimpl
def register_notifiers(settings):
    yield "broken", Broken
