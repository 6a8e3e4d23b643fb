"""What stands before every route: the token, the size of a body, and headers that keep the page to this server."""

import hmac
from typing import final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rectiflow.serving.refusal import Refusal

# Nothing is fetched from anywhere else, whatever a library's page would like to: it works without a network.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
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
    """

    def __init__(self, app: ASGIApp, token: str, body: int) -> None:
        self.app, self.token, self.body = app, token, body

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
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.body:
                raise self._too_large()
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
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.body:
            return self._too_large()
        path = request.url.path
        guarded = path == "/metrics" or path.startswith("/v1/")
        if self.token and guarded:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
            if scheme.lower() != "bearer" or not same:
                words = "the token is wrong" if given else "a token is needed; send Authorization: Bearer TOKEN"
                return Refusal(401, f"{words}.", code="invalid_api_key")
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is longer than {self.body} bytes.", code="body_too_large")


def refusal_response(refusal: Refusal) -> JSONResponse:
    """The answer of a refusal."""
    headers = {**refusal.headers, "Connection": "close"} if refusal.status in (408, 413) else refusal.headers
    return JSONResponse(refusal.body, refusal.status, headers)
