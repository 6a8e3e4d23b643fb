"""`/v1/videos` as OpenAI's clients know it: jobs that are asked for, asked after, fetched and deleted."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, final

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from rectiflow.base.errors import unknown
from rectiflow.serving.asked_extension import AskedExtension, asked_extension, extension_of
from rectiflow.serving.asked_video import NUMBERS, PICTURES, AskedVideo, asked_video, check_makes_clips, wanted_of
from rectiflow.serving.body import fields_and_pictures, json_body, kind_of
from rectiflow.serving.engine import Engine
from rectiflow.serving.films import KINDS, Film, Films
from rectiflow.serving.follow import refusal_of
from rectiflow.serving.guard import METHODS, refusal_response, wrong_method
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Served, within

_LOG = logging.getLogger(__name__)
_POLL = {"openai-poll-after-ms": "500"}  # OpenAI's clients ask again after so long
_PAGE, _LONGEST_PAGE = 20, 100
_ENDINGS = {"video": "mp4", "thumbnail": "webp", "spritesheet": "png"}


@final
class VideoApi:
    """The routes of one engine; of a model of pictures they refuse, and say where pictures are made.

    Args:
        engine: makes the clips.
        served: the model and its limits.
    """

    def __init__(self, engine: Engine, served: Served) -> None:
        self.served, self.films = served, Films(engine, served)
        self._reading = asyncio.Semaphore(1)  # films are decoded one at a time
        self.router = APIRouter()
        add = self.router.add_api_route
        first, longer = AskedVideo.model_json_schema(), AskedExtension.model_json_schema()
        add("/v1/videos", self.create, methods=["POST"], openapi_extra={"requestBody": _body(first)})
        add("/v1/videos", self.films_page, methods=["GET"])
        add("/v1/videos/extensions", self.extend, methods=["POST"], openapi_extra={"requestBody": _body(longer)})
        add("/v1/videos/{name}", self.retrieve, methods=["GET"])
        add("/v1/videos/{name}", self.delete, methods=["DELETE"])
        add("/v1/videos/{name}/content", self.content, methods=["GET"])
        for path in ("/v1/videos", "/v1/videos/{name}", "/v1/videos/{name}/content"):
            add(path, wrong_method, methods=METHODS, include_in_schema=False)

    async def create(self, request: Request) -> Response:
        """A job for a body."""
        return await self._begun(lambda: self._created(request))

    async def extend(self, request: Request) -> Response:
        """A job for what follows a finished film; its own film is of both."""
        return await self._begun(lambda: self._extended(request))

    async def _begun(self, begin: Callable[[], Awaitable[Film]]) -> Response:
        """A job that has begun, or why there is none."""
        try:
            check_makes_clips(self.served)
            film = await begin()
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                _LOG.exception("a job could not begin")
            return refusal_response(refusal)
        return JSONResponse(film.told(self.served), headers=_POLL)

    async def _created(self, request: Request) -> Film:
        values, pictures = await fields_and_pictures(request, self.served.limits, PICTURES, NUMBERS)
        return await asyncio.to_thread(self._start, values, pictures)

    async def _extended(self, request: Request) -> Film:
        limits, files = self.served.limits, dict[str, bytes]()
        if kind_of(request) == "application/json":  # in which a film can be named alone
            values = await json_body(request, limits)
        else:
            values, files = await fields_and_pictures(request, limits, ("video",), NUMBERS)
        async with self._reading:
            return await asyncio.to_thread(self._extend, values, files.get("video", b""))

    async def films_page(self, request: Request) -> Response:
        """Jobs, page by page."""
        try:
            check_makes_clips(self.served)
            page, more = self._page(request.query_params)
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse(
            {
                "object": "list",
                "data": [film.told(self.served) for film in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": more,
            }
        )

    async def retrieve(self, name: str) -> Response:
        """How a job stands."""
        try:
            film = self._find(name)
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse(film.told(self.served), headers=None if film.completed else _POLL)

    async def delete(self, name: str) -> Response:
        """Forget a job; cancel it if it is not done."""
        try:
            self._find(name)
            self.films.delete(name)
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse({"id": name, "object": "video.deleted", "deleted": True})

    async def content(self, name: str, request: Request) -> Response:
        """The film, or pictures of it."""
        try:
            film = self._find(name)
            kind = request.query_params.get("variant", "video")
            if kind not in KINDS:
                raise Refusal(400, str(unknown("variant", kind, list(KINDS))), "variant")
            content = _files(film)[kind]
        except Refusal as refusal:
            return refusal_response(refusal)
        named = f'attachment; filename="{film.id}.{_ENDINGS[kind]}"'
        return Response(content, media_type=KINDS[kind], headers={"Content-Disposition": named})

    def _start(self, values: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Film:
        return self.films.start(wanted_of(self.served, asked_video(values), pictures))

    def _extend(self, values: Mapping[str, Any], content: bytes) -> Film:
        fields = asked_extension(values)
        if fields.video:
            film = self._find(fields.video)
            content = _files(film)["video"]
            if fields.size == "auto" and film.wanted.request.size is not None:
                height, width = film.wanted.request.size
                fields = fields.model_copy(update={"size": f"{width}x{height}"})
        return self.films.start(extension_of(self.served, fields, content))

    def _find(self, name: str) -> Film:
        check_makes_clips(self.served)
        return self.films.find(name)

    def _page(self, asked: Mapping[str, str]) -> tuple[list[Film], bool]:
        """Films of a page, and whether there are more behind."""
        limit, order, after = asked.get("limit", str(_PAGE)), asked.get("order", "desc"), asked.get("after")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 6):
            raise Refusal(400, f"limit: expected 1 to {_LONGEST_PAGE}, received '{limit}'.", "limit")
        within("limit", int(limit), 1, _LONGEST_PAGE)
        if order not in ("asc", "desc"):
            raise Refusal(400, f"order: expected asc or desc, received '{order}'.", "order")
        films = self.films.all()[:: 1 if order == "asc" else -1]
        if after is not None:
            place = next((number for number, film in enumerate(films) if film.id == after), None)
            if place is None:
                raise Refusal(400, f"after: there is no video '{after[:100]}' any more.", "after")
            films = films[place + 1 :]
        return films[: int(limit)], len(films) > int(limit)


def _files(film: Film) -> Mapping[str, bytes]:
    """What there is to fetch of a film.

    Raises:
        Refusal: it is not done, or has failed.
    """
    if film.error is not None:
        raise Refusal(400, f"there is no film: {film.error.message}", code="video_failed")
    if not film.files:
        words = f"the film is {film.status}, {film.progress} %; ask again when it is completed."
        raise Refusal(400, words, code="video_not_ready")
    return film.files


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind in ("application/json", "multipart/form-data")}
    return {"content": content, "required": True}
