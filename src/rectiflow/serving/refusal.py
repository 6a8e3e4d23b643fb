"""An answer that is not a picture, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from typing import Any, final

_LONGEST = 500
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


@final
class Refusal(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        message: one line: what was expected, what came, what to do; the middle of a long one is left out.
        param: the field at fault, if it is one.
        code: a word for programs.
        retry_after: seconds after which to try again; 0 says nothing of it.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        line = " ".join(message.encode("utf-8", "replace").decode().split())
        half = _LONGEST // 2
        self.message = line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"
        super().__init__(self.message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}
