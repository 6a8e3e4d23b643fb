"""Engine, API and page as one program."""

import asyncio
import math
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Mount

from rectiflow.base.errors import InputError
from rectiflow.serving.api import Api
from rectiflow.serving.engine import Engine
from rectiflow.serving.guard import Guard
from rectiflow.serving.page import Page
from rectiflow.serving.served import Served
from rectiflow.serving.video_api import VideoApi

_KEEP_ALIVE = 30
_UPLOADS = ("/v1/videos", "/v1/videos/extensions", "/gradio_api/upload")
_LAST_WORDS = 5  # seconds in which those are answered whose pictures are given up


def application(engine: Engine, served: Served, folder: Path | None = None, token: str = "") -> FastAPI:
    """The whole, as ASGI.

    Args:
        engine: makes the pictures.
        served: the model and its limits.
        folder: where the page keeps pictures; None leaves out the page.
        token: that clients must bear; empty asks for none.
    """
    videos = VideoApi(engine, served)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        videos.films.close()

    app = FastAPI(title=f"rectiflow: {served.name}", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(videos.router)
    app.include_router(Api(engine, served).router)
    if folder is not None:
        Page(engine, served, folder).mount(app, token)
    uploads = dict.fromkeys(_UPLOADS, served.limits.upload) if served.takes_frames else {}
    app.add_middleware(Guard, token=token, body=served.limits.body, uploads=uploads)
    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        InputError: it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"the address {host}:{port} cannot be had ({error}); try another --port or --host.") from error


def serve(engine: Engine, served: Served, at: socket.socket, token: str = "", grace: float = 30.0) -> None:
    """Serve until told to stop; then finish what was begun, for up to `grace` seconds."""
    host, port = at.getsockname()[:2]
    with TemporaryDirectory(prefix="rectiflow-") as folder, at:
        app = application(engine, served, Path(folder), token)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(grace) + _LAST_WORDS,
            server_header=False,
        )
        print(f"{served.name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        # uvicorn repeats a signal when it is done; by then there is nothing left to stop.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        asyncio.run(_until_told(uvicorn.Server(config), engine, app, at, grace))


async def _until_told(server: uvicorn.Server, engine: Engine, app: FastAPI, at: socket.socket, grace: float) -> None:
    running = asyncio.create_task(server.serve([at]))
    while not (server.should_exit or running.done()):
        await asyncio.sleep(0.1)
    engine.refuse()
    # While uvicorn still holds the connections: those whose pictures are given up are told so on them.
    closing = asyncio.create_task(asyncio.to_thread(engine.close, grace))
    for route in app.routes:  # pages that are open hold connections until they are told
        if isinstance(route, Mount) and isinstance(route.app, App) and route.app.stop_event is not None:
            route.app.stop_event.set()
    await running
    await asyncio.to_thread(engine.close, 0)  # told twice, or nobody is there any more
    await closing
