"""What the server answers: the routes that the page needs, under its own name, and nothing that leads elsewhere.

Gradio has more routes than this page needs: uploads, a proxy, downloads of any URL on a visitor's behalf.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTES = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico)/?|/(assets|static)/.+"
    r"|/gradio_api/(queue/join|queue/data|heartbeat/\w+|file=/.+)"
)
# The browser itself refuses what the page should load or send elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; base-uri 'self'; form-action 'none'; object-src 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware. With `loopback` requests must name this machine as localhost does, or a page from elsewhere could
    reach the server under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and ROUTES.fullmatch(scope["path"]) and (not self._loopback or _names_loopback(scope)):
            await self._app(scope, receive, _with_policy(send))
        elif scope["type"] == "http":
            await PlainTextResponse("Not found", 404)(scope, receive, send)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names_loopback(scope: Scope) -> bool:
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = POLICY
            headers["referrer-policy"] = "no-referrer"
        await send(message)

    return sending
