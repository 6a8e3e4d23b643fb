"""Small models with random weights, engines over them, and a server on a free port."""

import contextlib
import threading
import time
from functools import partial

import httpx
import pytest
import torch
import uvicorn

from rectiflow.autoencoders.autoencoder import Identity
from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.conditioning.tokens import Tokens
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, Inputs, MMDiTConfig, TokensInput, VideoDiTConfig, fitted
from rectiflow.pipeline import Pipeline
from rectiflow.serving.engine import Engine
from rectiflow.serving.limits import Limits
from rectiflow.serving.served import Served
from rectiflow.serving.server import application

NAMES = ("cat", "dog", "eel")
PATIENCE = 120.0  # seconds for what a slow machine has to do; where all goes well nothing takes so long
get, post, put, delete = (partial(httpx.request, way, timeout=PATIENCE) for way in ("GET", "POST", "PUT", "DELETE"))


def model(config, shape, names=(), encoders=()):
    torch.manual_seed(0)
    config = fitted(config, Inputs(shape[0], len(names), tuple(e.gives for e in encoders), 0))
    network = build(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # gates and outputs start at zero
    flow = Flow.build(network, FlowConfig()).requires_grad_(False).eval()
    return Pipeline(
        flow, FlowConfig(), config, shape, Conditioner(names, encoders, null_trained=bool(names or encoders))
    )


@pytest.fixture(scope="session")
def classes():
    return model(DiTConfig(patch=2, width=16, depth=1, heads=2), (1, 4, 4), NAMES)


@pytest.fixture(scope="session")
def unconditional():
    return model(DiTConfig(patch=2, width=16, depth=1, heads=2), (3, 8, 8))


@pytest.fixture(scope="session")
def texts():
    captions = ["a red 7", "a blue 3 above a green 5", "two yellow digits"]
    tokens = Tokens.train(captions, 280, 48, TokensInput(width=32, depth=1))
    return model(MMDiTConfig(patch=4, width=32, depth=2, heads=2), (3, 8, 8), encoders=(tokens,))


def model_of_clips(channels, autoencoder):
    torch.manual_seed(0)
    config = VideoDiTConfig(
        channels=channels, classes=2, patch=4 if channels == 3 else 2, width=24, depth=1, heads=2, texts=(),
        picture=channels,
    )  # fmt: skip
    network = build(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    flow = Flow.build(network, FlowConfig()).requires_grad_(False).eval()
    conditioner = Conditioner(("left", "right"), frames=FramesConfig(), null_trained=True)
    return Pipeline(flow, FlowConfig(), config, (3, 9, 16, 16), conditioner, autoencoder)


@pytest.fixture(scope="session")
def clips():
    """Clips 3×9×16×16 in pixel space, which may be given what they begin and end with."""
    return model_of_clips(3, Identity())


@pytest.fixture(scope="session")
def latent_clips():
    """The same in the latents 5×3×4×4 of a causal autoencoder."""
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=3, width=8, multipliers=(1, 2, 2), groups=4, latent_channels=5, temporal=4
    )  # fmt: skip
    return model_of_clips(5, LatentSpace(build_autoencoder(config).requires_grad_(False).eval()))


@contextlib.contextmanager
def engine_of(pipeline, limits=None, lanes=2):
    engine = Engine(pipeline, limits, lanes)
    try:
        yield engine
    finally:
        engine.close(0)


@contextlib.contextmanager
def running(pipeline, folder=None, token="", limits=None, lanes=2):
    """A server of a pipeline; gives its address and its engine."""
    limits = limits or Limits()
    with engine_of(pipeline, limits, lanes) as engine:
        app = application(engine, Served(pipeline, "tiny", limits, steps=5), folder, token)
        config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        socket = config.bind_socket()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", engine
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"


def until(condition, seconds=PATIENCE):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def counted(engine, name, **labels):
    """A number of the engine's metrics; 0 if nothing was counted yet."""
    return engine.metrics.registry.get_sample_value(name, labels) or 0
