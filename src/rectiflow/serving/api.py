"""`POST /v1/images/generations` and `GET /v1/models` as OpenAI's clients know them; `/health` and `/metrics`."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, final

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from torch import Tensor

from rectiflow import request as sampling
from rectiflow.serving.body import json_body
from rectiflow.serving.engine import Engine
from rectiflow.serving.follow import Gone, follow, refusal_of
from rectiflow.serving.guard import METHODS, refusal_response, wrong_method
from rectiflow.serving.job import Finished, Pictures, Preview
from rectiflow.serving.metrics import CONTENT_TYPE
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Asked, Served, asked, request_of
from rectiflow.serving.shown import about, png, settings

_CLIENT_GONE = 499  # nobody reads it; logs of other servers use the same number
_NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


@final
class Api:
    """The routes of one engine.

    Args:
        engine: makes the pictures.
        served: the model and its limits.
    """

    def __init__(self, engine: Engine, served: Served) -> None:
        self.engine, self.served = engine, served
        self.since = int(time.time())
        self.router = APIRouter()
        add = self.router.add_api_route
        body = {"content": {"application/json": {"schema": Asked.model_json_schema()}}, "required": True}
        add("/v1/images/generations", self.generate, methods=["POST"], openapi_extra={"requestBody": body})
        add("/v1/models", self.models, methods=["GET"])
        add("/v1/models/{name:path}", self.model, methods=["GET"])
        add("/health", self.health, methods=["GET"])
        add("/metrics", self.metrics, methods=["GET"])
        # Further down everything belongs to the page, which would answer in its own words.
        for path in ("/v1/images/generations", "/v1/models", "/v1/models/{name:path}", "/health", "/metrics"):
            add(path, wrong_method, methods=METHODS, include_in_schema=False)
        add("/v1/{rest:path}", self.nowhere, methods=METHODS, include_in_schema=False)

    async def generate(self, request: Request) -> Response:
        """Pictures for a body, in one answer or in server-sent events."""
        try:
            fields = asked(await json_body(request, self.served.limits))
            wanted = request_of(self.served, fields)
            previews = fields.partial_images if fields.stream else 0
            events = follow(self.engine, wanted, previews, lambda: _left(request))
            first = await anext(events)
            if fields.stream:
                stream = self._stream(events, first, wanted)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            async with aclosing(events):
                assert isinstance(first, Finished)
                return JSONResponse(await asyncio.to_thread(self._answer, first, wanted))
        except (Gone, ClientDisconnect):
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            return refusal_response(refusal_of(error))

    async def models(self) -> Response:
        """The one that is served."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        """The one that is served, if it has this name."""
        if name != self.served.name:
            words = f"unknown model '{name}'. Expected: {self.served.name}."
            return refusal_response(Refusal(404, words, "model", "model_not_found"))
        return JSONResponse(self._model())

    async def health(self) -> Response:
        """Whether requests are taken: 200, or 503 when it is shutting down."""
        status = {"status": "closing" if self.engine.closing else "ok", "model": self.served.name}
        return JSONResponse(status, 503 if self.engine.closing else 200)

    async def metrics(self) -> Response:
        """Everything that is counted, in Prometheus' text format."""
        return Response(self.engine.metrics.text(), media_type=CONTENT_TYPE)

    async def nowhere(self, request: Request) -> Response:
        """A path that does not exist."""
        words = f"there is nothing at {request.url.path}; there are /v1/images/generations, /v1/videos and /v1/models."
        return refusal_response(Refusal(404, words, code="not_found"))

    def _model(self) -> dict[str, Any]:
        return {"id": self.served.name, "object": "model", "created": self.since, "owned_by": "rectiflow"}

    def _answer(self, done: Finished, wanted: sampling.Request) -> dict[str, Any]:
        pictures = [self._picture(pixels, wanted, index) for index, pixels in enumerate(done.pixels)]
        return {
            "created": int(time.time()),
            "data": pictures,
            "output_format": "png",
            "background": "opaque",
            "size": settings(self.served, wanted)["size"],
            "usage": _NO_TOKENS,
        }

    def _picture(self, pixels: Tensor, wanted: sampling.Request, index: int) -> dict[str, Any]:
        file = png(pixels, about(self.served, wanted, index))
        return {"b64_json": base64.b64encode(file).decode(), "index": index, **settings(self.served, wanted)}

    async def _stream(
        self, events: AsyncGenerator[Pictures, None], first: Pictures, wanted: sampling.Request
    ) -> AsyncIterator[str]:
        event: Pictures | None = first
        try:
            while event is not None:
                for line in await asyncio.to_thread(self._lines, event, wanted):
                    yield line
                event = await anext(events, None)
        except Gone:
            return
        except Exception as error:
            yield f"event: error\ndata: {json.dumps(refusal_of(error).body)}\n\n"
        finally:
            await events.aclose()

    def _lines(self, event: Pictures, wanted: sampling.Request) -> list[str]:
        """An event as server-sent events, one for each picture."""
        lines = []
        for index, pixels in enumerate(event.pixels):
            shared = {"created_at": int(time.time()), "output_format": "png", "background": "opaque", "quality": "auto"}
            values = {**self._picture(pixels, wanted, index), **shared}
            if isinstance(event, Preview):
                name = "image_generation.partial_image"
                values |= {"partial_image_index": event.number, "step": event.step}
            else:
                name = "image_generation.completed"
                values["usage"] = _NO_TOKENS
            lines.append(f"event: {name}\ndata: {json.dumps({'type': name, **values})}\n\n")
        return lines


async def _left(request: Request) -> None:
    """Done when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
