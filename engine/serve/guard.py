"""Who may ask the server: programs of this machine, or who has the token."""

from __future__ import annotations

import hmac
import ipaddress
import re
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d+)?")  # with its port, as a request names it
COOKIE = "metric_learning_token"
SAFE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "connection": "close",  # see BriefConnection
}


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine for itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through to an app, or answers 401 or 403.

    Without a token a page of the network must not ask in the name of a browser that runs on this
    machine: the host that was asked for is loopback, and so is the page that asks. With a token it
    is in the header `Authorization: Bearer TOKEN`, or in a cookie that `/?token=TOKEN` sets.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refuse(scope, Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_safely)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to who may not ask, or None."""
        if self.token is None:
            host = headers.get("host", "")
            origin = headers.get("origin")
            found = HOST.fullmatch(host)
            if found is None or not is_loopback(found[1].strip("[]")):
                return _error(403, "expected the host localhost: give --token for others")
            if origin not in (None, f"http://{host}"):
                return _error(403, "expected a request of this server's own page")
            return None

        given = parse_qs(scope["query_string"].decode("latin1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(given):
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return response
        bearer = headers.get("authorization", "").partition("Bearer ")[2].strip()
        if self._is_token(bearer) or self._is_token(_cookie(headers)):
            return None
        refusal = _error(401, "expected the token: open /?token=TOKEN, or send it as a bearer")
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal

    def _is_token(self, text: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(text.encode(), self.token.encode())


def _cookie(headers: Headers) -> str:
    try:
        found: Any = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _error(status: int, words: str) -> Response:
    return JSONResponse({"detail": words}, status)
