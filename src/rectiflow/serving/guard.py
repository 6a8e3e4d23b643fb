"""What stands before every route: the token, the size of a body, and headers that keep the page to this server."""

import hmac
from collections.abc import Mapping
from typing import final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rectiflow.serving.refusal import Refusal

# Nothing is fetched from anywhere else, whatever a library's page would like to: it works without a network.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


@final
class Guard:
    """Middleware.

    Args:
        app: what it stands before.
        token: that clients of `/v1` and `/metrics` must bear; empty asks for none.
        body: most bytes of a body.
        uploads: most bytes of one at these paths.
    """

    def __init__(self, app: ASGIApp, token: str, body: int, uploads: Mapping[str, int] | None = None) -> None:
        self.app, self.token, self.body, self.uploads = app, token, body, uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope)
        refused = self._refused(request)
        if refused is not None:
            await refusal_response(refused)(scope, receive, send)
            return
        received, most = 0, self._most(request)

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            return message

        begun = False

        async def headed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        try:
            await self.app(scope, counted, headed)
        except Refusal as refusal:
            if begun:
                raise
            await refusal_response(refusal)(scope, receive, headed)

    def _refused(self, request: Request) -> Refusal | None:
        length, most = request.headers.get("content-length", "0"), self._most(request)
        if not length.isdecimal() or int(length[:20]) > most:
            return _too_large(most)
        path = request.url.path
        guarded = path == "/metrics" or path.startswith("/v1/")
        if self.token and guarded:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
            if scheme.lower() != "bearer" or not same:
                words = "the token is wrong" if given else "a token is needed; send Authorization: Bearer TOKEN"
                return Refusal(401, f"{words}.", code="invalid_api_key")
        return None

    def _most(self, request: Request) -> int:
        return self.uploads.get(request.url.path, self.body)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is longer than {most} bytes.", code="body_too_large")


def refusal_response(refusal: Refusal) -> JSONResponse:
    """The answer of a refusal."""
    headers = {**refusal.headers, "Connection": "close"} if refusal.status in (408, 413) else refusal.headers
    return JSONResponse(refusal.body, refusal.status, headers)


async def wrong_method(request: Request) -> Response:
    """The answer of a path that exists, called by another method."""
    words = f"{request.url.path} does not take {request.method}."
    return refusal_response(Refusal(405, words, code="method_not_allowed"))
