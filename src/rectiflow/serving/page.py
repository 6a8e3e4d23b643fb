"""The page: a prompt, settings, previews while pictures are made, and a gallery that remembers how each was made."""

import asyncio
import hmac
import itertools
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, final

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import FastAPI
from torch import Tensor

from rectiflow.data.clips import clip_grid, save_clip
from rectiflow.data.pictures import grid
from rectiflow.request import Request
from rectiflow.sampling.solvers import SOLVERS
from rectiflow.serving.asked_video import PICTURES, frames_of, with_pictures
from rectiflow.serving.engine import Engine
from rectiflow.serving.follow import follow, refusal_of
from rectiflow.serving.frames import STRIDE, frames_trained, longest_clip, makes_clips, middle_frame
from rectiflow.serving.job import Pictures, Preview
from rectiflow.serving.refusal import Refusal
from rectiflow.serving.served import Asked, Served, asked, request_of
from rectiflow.serving.shown import about, png, settings

_PREVIEWS = 12
_PULSE, _LOOK = 1.0, 0.05  # seconds
_UNHEARD = 30  # messages that nobody fetches, of which there is one a pulse at least, until a page counts as left
_IN_GALLERY = 60
_KEPT_FILES = 1000
_SCREEN = 384  # pixels that the preview of one picture is wide
# Small pictures are shown as what they are, and with no font but the system's own.
_CSS = (
    "#live img, #gallery img, #gallery video, #film video { image-rendering: pixelated; } "
    "#live img { min-height: 16rem; object-fit: contain; }"
)
_FONTS = ["system-ui", "sans-serif"]
_INPUTS = ("prompt", "negative_prompt", "seed", "steps", "solver", "guidance", "n", "frames", "first", "last")
_OF_CLIPS = ("frames", "first", "last")

Entry = dict[str, Any]


@final
class Page:
    """The page of one engine.

    Args:
        engine: makes the pictures.
        served: the model and its limits.
        folder: where finished pictures are kept; the oldest go.
    """

    def __init__(self, engine: Engine, served: Served, folder: Path) -> None:
        self.engine, self.served, self.folder = engine, served, folder
        self.kept: deque[Path] = deque()
        self.numbers = itertools.count()
        self._noun = "clip" if makes_clips(served.pipeline) else "picture"
        gr.set_static_paths([folder])
        self.blocks = self._blocks()

    def mount(self, app: FastAPI, token: str = "") -> FastAPI:
        """Put the page at `/`, behind a form that asks for the token if there is one."""

        def admitted(name: str, word: str) -> bool:
            return hmac.compare_digest(word.encode(), token.encode())

        theme = gr.themes.Base(font=_FONTS, font_mono=["ui-monospace", "monospace"])
        return gr.mount_gradio_app(
            app,
            self.blocks,
            path="/",
            auth=admitted if token else None,
            auth_message="Any name, and the server's token as password.",
            footer_links=[],
            run_history=False,
            max_file_size=self.served.limits.upload if self.served.takes_frames else self.served.limits.body,
            ssr_mode=False,
            enable_monitoring=False,
            theme=theme,
            css=_CSS,
        )

    async def generate(self, client: gr.Request, *given: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Previews, then pictures: what the live picture, the line below it, the gallery, its memory and the film show.

        Args:
            client: the page that asks.
            given: values of `_INPUTS`, then the entries of the gallery.
        """
        entries: list[Entry] = given[-1]
        values = dict(zip(_INPUTS, given[:-1], strict=True))
        try:
            wanted = await asyncio.to_thread(self._wanted, values)
            async with aclosing(_pulsing(follow(self.engine, wanted, _PREVIEWS))) as events:
                yield gr.skip(), "waiting", gr.skip(), gr.skip(), gr.skip()
                async for event in events:
                    if event is None:
                        if self._unheard(client) > _UNHEARD:
                            raise Refusal(408, "the page was away, so this was stopped; ask again.")
                        yield (gr.skip(),) * 5
                        continue
                    sheet = self._sheet(middle_frame(event.pixels))
                    if isinstance(event, Preview):
                        yield sheet, f"step {event.step} of {event.steps}", gr.skip(), gr.skip(), gr.skip()
                    else:
                        new = await asyncio.to_thread(self._keep, event.pixels, wanted)
                        film = await asyncio.to_thread(self._film, event.pixels, wanted, new)
                        entries = [*new, *entries][:_IN_GALLERY]
                        words = f"{len(event.pixels)} in {event.seconds:.2f} s, seed {wanted.seed}"
                        yield sheet, words, [(e["file"], caption(e)) for e in entries], entries, film
        except Exception as error:
            raise gr.Error(refusal_of(error).message, duration=None, print_exception=False) from error

    def _unheard(self, client: gr.Request) -> int:
        """How many messages wait to be fetched by a page.

        Gradio sees that a page has left by the stream on which it fetches them. One that left before that stream began
        would be worked for to the end.
        """
        box = self.blocks._queue.pending_messages_per_session.get(client.session_hash)
        return 0 if box is None else box.qsize()

    def _wanted(self, values: Entry) -> Request:
        fields = self._asked({name: value for name, value in values.items() if name not in _OF_CLIPS})
        if not makes_clips(self.served.pipeline):
            return request_of(self.served, fields)
        frames = int(values["frames"] or 1)
        if frames > 1:
            frames = frames_of(self.served, frames, None, self.served.rate)
        named = zip(PICTURES, ("first", "last"), strict=True)
        files = {field: Path(values[name]).read_bytes() for field, name in named if values[name] and frames > 1}
        return with_pictures(self.served, request_of(self.served, fields, frames), files)

    def _asked(self, values: Entry) -> Asked:
        """Numbers of a page may come as floats, and its seed is a text: there the largest would be rounded."""
        texts = {name: values[name] or "" for name in ("prompt", "negative_prompt")}
        whole = {name: int(values[name]) for name in ("steps", "n") if values[name] is not None}
        seed = str(values["seed"] or "").strip()
        try:
            return asked({**values, **texts, **whole, "seed": int(seed[:30]) if seed else None})
        except ValueError as error:
            raise Refusal(400, f"seed: expected a whole number, received '{seed}'.", "seed") from error

    def _sheet(self, pixels: Tensor) -> Any:
        scale = max(1, _SCREEN // max(pixels.shape[1:3]))
        return grid(pixels, min(len(pixels), 5), scale if len(pixels) == 1 else max(1, scale // 2))

    def _keep(self, pixels: Tensor, wanted: Request) -> list[Entry]:
        entries, rate = [], self.served.rate if pixels.dim() == 5 else None
        for index, picture in enumerate(pixels):
            words = about(self.served, wanted, index, rate)
            if rate is None:
                file = self._file(wanted, "png")
                file.write_bytes(png(picture, words))
            else:
                file = self._file(wanted, "mp4")
                save_clip(picture, file, rate, words)
            entries.append({"file": str(file), "index": index, **settings(self.served, wanted, rate)})
        return entries

    def _film(self, pixels: Tensor, wanted: Request, entries: Sequence[Entry]) -> str | None:
        """The clips side by side; None of pictures."""
        if pixels.dim() == 4:
            return None
        if len(entries) == 1:
            return str(entries[0]["file"])
        file = self._file(wanted, "mp4")
        save_clip(clip_grid(pixels, min(len(pixels), 5)), file, self.served.rate, settings(self.served, wanted))
        return str(file)

    def _file(self, wanted: Request, ending: str) -> Path:
        """A new file, in the place of the oldest if there are many."""
        file = self.folder / f"rectiflow-{wanted.seed}-{next(self.numbers):06d}.{ending}"
        self.kept.append(file)
        while len(self.kept) > _KEPT_FILES:
            self.kept.popleft().unlink(missing_ok=True)
        return file

    def _blocks(self) -> gr.Blocks:
        name = self.served.name
        with gr.Blocks(title=f"{name} · rectiflow", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
            entries, chosen = gr.State([]), gr.State({})
            gr.Markdown(f"# {name}")
            with gr.Row():
                with gr.Column(scale=2):
                    inputs = self._inputs()
                    with gr.Row():
                        make = gr.Button("Generate", variant="primary", elem_id="generate")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Column(scale=3):
                    live = gr.Image(
                        label="Now", format="png", interactive=False, buttons=[], elem_id="live", height=_SCREEN
                    )
                    line = gr.Markdown(elem_id="line")
                    film = gr.Video(
                        label="Film", interactive=False, autoplay=True, loop=True, elem_id="film", height=_SCREEN,
                        visible=makes_clips(self.served.pipeline), buttons=[],
                    )  # fmt: skip
            gallery = gr.Gallery(
                label="Made",
                fit_columns=False, columns=6, height="auto", format="png", buttons=["download"], elem_id="gallery",
                object_fit="contain", interactive=False,
            )  # fmt: skip
            with gr.Row():
                words = gr.JSON(label=f"Made with (choose a {self._noun})", elem_id="settings", open=True)
                with gr.Column():
                    back = gr.Button("Use these settings", elem_id="back")
                    file = gr.DownloadButton(f"Download the {self._noun}", elem_id="download", interactive=False)
            shown = [live, line, gallery, entries, film]
            running = make.click(
                self.generate, [*inputs, entries], shown,
                concurrency_limit=self.served.limits.queue, show_progress="hidden", api_visibility="private",
            )  # fmt: skip
            stop.click(lambda: "stopped", None, line, cancels=[running], api_visibility="private")
            gallery.select(_choose, entries, [chosen, words, file], api_visibility="private", show_progress="hidden")
            back.click(_bring_back, [chosen, *inputs], inputs, api_visibility="private", show_progress="hidden")
        blocks.queue(max_size=2 * self.served.limits.queue, api_open=False)
        # Gradio looks a thousand times a second for something to do, and each time takes the lock that lanes need.
        blocks._queue.sleep_when_free = blocks._queue.progress_update_sleep_when_free = _LOOK
        return blocks

    def _inputs(self) -> list[Any]:
        """In the order of `_INPUTS`."""
        served, limits = self.served, self.served.limits
        names, texts = list(served.pipeline.class_names), served.takes_prompts
        trained = frames_trained(served.pipeline)
        prompt = (
            gr.Dropdown(names, value=names[0], label="Class", elem_id="prompt")
            if names and not texts
            else gr.Textbox(label="Prompt", lines=2, visible=texts, elem_id="prompt", max_length=limits.prompt)
        )
        return [
            prompt,
            gr.Textbox(label="Negative prompt", visible=texts, elem_id="negative", max_length=limits.prompt),
            gr.Textbox(label="Seed (empty: drawn)", max_length=20, elem_id="seed"),
            gr.Slider(1, limits.steps, served.steps, step=1, label="Steps", elem_id="steps"),
            gr.Dropdown(list(SOLVERS), value=served.solver, label="Solver", allow_custom_value=True, elem_id="solver"),
            gr.Slider(0, 10, served.usual_guidance, step=0.1, label="Guidance w (0 is none)", elem_id="guidance",
                      visible=served.pipeline.conditioner.null_trained),
            gr.Slider(1, limits.pictures, min(4, limits.pictures, max(1, self.engine.room(trained))), step=1,
                      label=f"{self._noun.capitalize()}s", elem_id="count"),
            *self._inputs_of_clips(trained),
        ]  # fmt: skip

    def _inputs_of_clips(self, trained: int) -> list[Any]:
        """In the order of `_OF_CLIPS`; of a model of pictures, or of one that is given no frames, they are hidden."""
        most = longest_clip(self.served.pipeline, self.served.limits)
        return [
            gr.Slider(1, max(most, 2), min(trained, most), step=STRIDE, elem_id="frames", visible=trained > 1,
                      label=f"Frames, {self.served.rate:g} a second (1 is a picture)"),
            self._upload("First frame", "first"),
            self._upload("Last frame", "last"),
        ]  # fmt: skip

    def _upload(self, label: str, name: str) -> gr.Image:
        return gr.Image(
            label=label, elem_id=name, type="filepath", sources=["upload"], height=160, buttons=[],
            visible=self.served.takes_frames,
        )  # fmt: skip


async def _pulsing(events: AsyncGenerator[Pictures, None]) -> AsyncGenerator[Pictures | None, None]:
    """The events, and None in every second without one: Gradio looks whether a page is still open only between.

    They are closed when this is: whoever closes it while one is awaited cannot close them, for they are at work.
    """
    coming: asyncio.Task[Pictures | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait({coming}, timeout=_PULSE)
            if not done:
                yield None
                continue
            event, coming = coming.result(), None
            if event is None:
                return
            yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await events.aclose()


async def _next(events: AsyncGenerator[Pictures, None]) -> Pictures | None:
    return await anext(events, None)


def caption(entry: Entry) -> str:
    """An entry of the gallery in a line."""
    parts = [
        entry["prompt"],
        f"seed {entry['seed']}",
        f"{entry['steps']} {entry['solver']}",
        f"w {entry['guidance']:g}",
    ]
    return " · ".join(part for part in parts if part)


def _choose(entries: list[Entry], event: gr.SelectData) -> tuple[Any, ...]:
    entry = entries[event.index]
    words = {name: value for name, value in entry.items() if name != "file"}
    return entry, words, gr.DownloadButton(value=entry["file"], interactive=True)


def _bring_back(entry: Entry, *now: Any) -> list[Any]:
    """The settings of the chosen picture; what stands there now if none is chosen, and the pictures that were given."""
    return [entry.get(name, gr.skip()) for name in _INPUTS] if entry else [gr.skip() for _ in now]
