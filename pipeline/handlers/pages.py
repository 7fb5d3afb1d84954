"""The pages with their files, how to sign in, and the session of a page. Runs on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import __version__, pages
from pipeline.assets.asset import to_timestamp
from pipeline.auth import bearer_token, make_token
from pipeline.clock import utc_now
from pipeline.errors import Conflict, NotFound
from pipeline.handlers.base import BaseHandler
from pipeline.instants import instant_of
from pipeline.pages import runbooks
from pipeline.settings import Settings

# Images come from PUBLIC_URL, which may differ from the page's own host, or from any https storage. Everything else
# comes from the page's own host.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' https: {images} blob: data:; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
RUNBOOKS_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
# An open page renews its session long before the end.
SESSION_SECONDS = 12 * 3600.0
FOR_EVER = "public, max-age=31536000, immutable"


class _FileHandler(BaseHandler):
    def show(self, file: pages.File, cache_control: str) -> None:
        """Reply with the file, compressed if the browser accepts that, or with 304 if the browser has it."""
        self.set_header("Content-Type", file.content_type)
        self.set_header("Cache-Control", cache_control)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.add_header("Vary", "Accept-Encoding")
        is_packed = "gzip" in self.request.headers.get("Accept-Encoding", "")
        self.set_header("Etag", f'"{file.etag}{"-gzip" if is_packed else ""}"')
        if is_packed:
            self.set_header("Content-Encoding", "gzip")
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
            return
        self.finish(file.packed if is_packed else file.content)


class PageHandler(_FileHandler):
    """GET /: the page for people with photos."""

    route, name = "/", "index"

    def initialize(self, *, images: str, **common: Any) -> None:  # type: ignore[override]
        """images: the origin of PUBLIC_URL, from which images may come."""
        super().initialize(**common)
        self.policy = POLICY.format(images=images)

    def get(self, *_path: str) -> None:
        self.set_header("Content-Security-Policy", self.policy)
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.show(pages.document(self.name), "no-cache")

    head = get


class ConsoleHandler(PageHandler):
    """GET /console and every path below it: the page itself reads its address."""

    route, name = "/console", "console"


class RunbooksHandler(_FileHandler):
    """GET /runbooks: what to do for each alert, without a token. Alerts link to its sections."""

    route = "/runbooks"

    def get(self) -> None:
        self.set_header("Content-Security-Policy", RUNBOOKS_POLICY)
        self.show(runbooks.document(), "no-cache")

    head = get


class PageFileHandler(_FileHandler):
    """GET /pages/{version}/{path}."""

    route = "/pages/{version}/{path}"

    def get(self, version: str, path: str) -> None:
        file = pages.files().get(path)
        if file is None or path.endswith(".html"):
            raise NotFound("Not found")
        # A page of another version, from another process, gets the file of this version rather than 404.
        self.show(file, FOR_EVER if version == pages.version() else "no-cache")

    head = get


class AboutHandler(BaseHandler):
    """GET /api/about: what a page needs before the user has signed in."""

    route = "/api/about"

    def initialize(  # type: ignore[override]
        self, *, settings: Settings, sees: Callable[[], Mapping[str, str]], **common: Any
    ) -> None:
        """sees: returns what each AI provider recognizes, by the provider's name."""
        super().initialize(**common)
        self._settings = settings
        self.sees = sees

    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.reply(about(self._settings, self.sees()))


class SessionHandler(BaseHandler):
    """GET /api/session: the user of the token. POST: exchanges the token of a sign-in link for one of a session."""

    route = "/api/session"

    def initialize(self, *, settings: Settings, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self._settings = settings

    async def get(self) -> None:
        principal = await self.authenticate()
        self._show(bearer_token(self.request.headers.get("Authorization")), principal.role, principal.expires_at)

    async def post(self) -> None:
        principal = await self.authenticate()
        self.refuse_foreign_page()
        if not self._settings.gives_links or not principal.is_of_page:
            raise Conflict("This token cannot be prolonged; sign in again")
        token = make_token(self._settings, principal.user_id, principal.role, SESSION_SECONDS, is_of_page=True)
        self._show(token, principal.role, utc_now().timestamp() + SESSION_SECONDS)

    def _show(self, token: str, role: str, expires_at: float) -> None:
        self.set_header("Cache-Control", "no-store")
        expires = to_timestamp(instant_of(round(expires_at * 1000)))
        user_id = self.principal.user_id
        self.reply({"token": token, "userId": user_id, "role": role or None, "expiresAt": expires})


def about(settings: Settings, sees: Mapping[str, str]) -> dict[str, Any]:
    """Return public facts: schema About in contracts/analyze-queue.openapi.json."""
    return {
        "version": __version__,
        "categories": list(settings.categories),
        "maxUploadBytes": settings.max_upload_bytes,
        "providers": _providers(settings.all_providers, sees),
        "signIn": _sign_in(settings),
    }


def _providers(names: Sequence[str], sees: Mapping[str, str]) -> list[dict[str, str | None]]:
    return [{"name": name, "sees": sees.get(name) or None} for name in names]


def _sign_in(settings: Settings) -> dict[str, str | None]:
    if settings.login_url:
        return {"kind": "login", "loginUrl": settings.login_url}
    return {"kind": "link" if settings.gives_links else "token", "loginUrl": None}
