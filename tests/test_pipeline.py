import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256
from rectiflow.conditioner import Conditioner
from rectiflow.data.pictures import to_uint8
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.models.folder import CONVENTIONS, describe
from rectiflow.networks.build import build
from rectiflow.networks.config import DiTConfig, UNetConfig
from rectiflow.pipeline import Pipeline, Request

NETWORK = DiTConfig(channels=1, classes=3, patch=2, width=16, depth=1, heads=2)
KNOWN = Conditioner(("cat", "dog", "eel"), null_trained=True)


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    network = build(NETWORK)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    config = FlowConfig(schedule="trig", shift=1.5)
    flow = Flow.build(network, config).requires_grad_(False)
    return Pipeline(flow, config, NETWORK, (1, 4, 4), KNOWN, training={"recipe": "x", "step": 7})


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_model_is_the_same_model(pipeline, tmp_path):
    pipeline.save(tmp_path / "model")
    loaded = Pipeline.load(tmp_path / "model")
    request = Request(count=2, steps=5, guidance=1.0, solver="heun")
    assert torch.equal(loaded.sample(request).pixels, pipeline.sample(request).pixels)
    assert loaded.class_names == pipeline.class_names
    assert (type(loaded.flow.schedule).__name__, loaded.flow.shift) == ("Trig", 1.5)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "flow.safetensors"]


def test_a_unet_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    config = UNetConfig(channels=1, classes=3, width=16, multipliers=(1, 2), blocks=1, attention=(2,))
    flow = Flow.build(build(config), FlowConfig())
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = Pipeline(
        flow.requires_grad_(False).eval(), FlowConfig(), config, (1, 4, 4), Conditioner(("cat", "dog", "eel"))
    )
    pipeline.save(tmp_path)
    loaded, request = Pipeline.load(tmp_path), Request(count=2, steps=3)
    assert loaded.network_config == config
    assert torch.equal(loaded.sample(request).pixels, pipeline.sample(request).pixels)
    assert describe(tmp_path)["parameters"] == sum(p.numel() for p in flow.parameters())
    with pytest.raises(InputError, match=r"does not divide 5×4; the nearest size is 4×4"):
        loaded.sample(Request(size=(5, 4)))


def test_config_says_what_the_model_is(pipeline, tmp_path):
    pipeline.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["conventions"] == CONVENTIONS
    assert config["flow"] == FlowConfig(schedule="trig", shift=1.5).model_dump()
    assert config["weights"] == {"flow.safetensors": sha256(tmp_path / "flow.safetensors")}
    facts = describe(tmp_path)
    assert facts["parameters"] == sum(p.numel() for p in pipeline.flow.parameters())
    assert facts["model_step"] == 7


def test_class_by_class(pipeline):
    assert pipeline.sample(Request(["eel", "cat"], count=2, steps=1)).labels.tolist() == [2, 2, 0, 0]
    assert pipeline.sample(Request(count=1, steps=1)).labels.tolist() == [0, 1, 2]


def test_a_picture_does_not_depend_on_what_else_is_asked_for(pipeline):
    many = pipeline.sample(Request(["dog"], count=130, steps=4, guidance=1.0, seed=5))
    few = pipeline.sample(Request(["dog"], count=3, steps=4, guidance=1.0, seed=5))
    difference = to_uint8(many.pixels[:3]).int() - to_uint8(few.pixels).int()
    assert difference.abs().max() <= 1
    whole, part = (next(pipeline.states(Request(["dog"], 130, seed=5), *cut)) for cut in ((), (101, 103)))
    assert torch.equal(whole.x_t[101:103], part.x_t)  # the noise, bit for bit
    other = pipeline.sample(Request(["dog"], count=3, steps=4, guidance=1.0, seed=6))
    assert not torch.allclose(other.pixels, few.pixels)


def test_grid_and_interval_reach_the_sampler(pipeline):
    even = pipeline.sample(Request(steps=4, guidance=1.0)).pixels
    own = [state.t for state in pipeline.states(Request(grid="1,0.8,0.5,0"))]
    assert own == pytest.approx([1, 0.8, 0.5, 0])
    assert len(list(pipeline.states(Request(steps=6, grid="karras")))) == 7
    assert not torch.equal(even, pipeline.sample(Request(steps=4, guidance=1.0, grid="log-snr")).pixels)
    assert torch.equal(even, pipeline.sample(Request(steps=4, guidance=1.0, interval=(0.0, 1.0))).pixels)
    never = pipeline.sample(Request(steps=4, guidance=1.0, interval=(0.01, 0.02))).pixels
    assert torch.allclose(never, pipeline.sample(Request(steps=4)).pixels, atol=1e-6)


@pytest.mark.parametrize("name", ["polynomial", "vp-linear", "ve"])
def test_every_schedule_is_saved_and_sampled(pipeline, name, tmp_path):
    config = FlowConfig(schedule=name, exponent=1.5, sigma_max=20.0, sigma_data=0.4)
    pipeline.flow, pipeline.flow_config = Flow.build(pipeline.flow.network, config), config
    pipeline.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    states = list(loaded.states(Request(steps=5, solver="ab2-pec")))
    path = loaded.flow.schedule
    assert [states[0].t, states[-1].t] == [path.t_max, path.t_min]
    assert float(states[0].x_t.std()) == pytest.approx(path.prior_std, rel=0.2)
    assert loaded.flow.sigma_data == 0.4
    assert torch.equal(states[-1].x_t, list(pipeline.states(Request(steps=5, solver="ab2-pec")))[-1].x_t)


# Rounding may let "rk45" refuse another step: then pictures agree to its tolerance, not to a float's.
@pytest.mark.parametrize(("solver", "within"), [("sde:epsilon=t", 1e-5), ("edm", 1e-5), ("rk45", 1e-2)])
def test_a_picture_does_not_depend_on_the_others(pipeline, solver, within):
    request = Request(count=3, steps=5, solver=solver, guidance=1.0)
    whole = pipeline.sample(request).pixels
    *_, last = pipeline.states(request, 2, 4)
    assert torch.allclose(last.x_t, whole[2:4], atol=within)
    assert not torch.allclose(whole[2], whole[3], atol=0.1)


def test_another_size(pipeline):
    assert pipeline.sample(Request(["dog"], steps=1, size=(6, 8))).pixels.shape == (1, 1, 6, 8)
    with pytest.raises(InputError, match="does not divide 5×8"):
        pipeline.sample(Request(["dog"], steps=1, size=(5, 8)))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(["dgo"]), "unknown class 'dgo'. Did you mean 'dog'"),
        (Request(solver="eular"), "Did you mean 'euler'"),
        (Request(count=0), "count must be at least 1"),
        (Request(steps=0), "steps must be at least 1"),
        (Request(guidance=-1.0), "≥ 0"),
        (Request(grid="karas"), "Did you mean 'karras'"),
        (Request(grid=(1.0, 0.5)), "begin at 1 and end at 0"),
        (Request(grid=(1.2, 0.5, 0.0)), "begin at 1 and end at 0"),
        (Request(grid=(1.0, 0.4, 0.6, 0.0)), "must fall"),
        (Request(steps=0, solver="rk45"), "steps must be at least 1"),
        (Request(solver="ddpm:et=1"), "Did you mean 'eta'"),
        (Request(interval=(0.8, 0.2)), "0 ≤ low ≤ high ≤ 1"),
        (Request(size=(0, 4)), "nearest size is 2×4"),
    ],
)
def test_impossible_requests(pipeline, request_, words):
    with pytest.raises(InputError, match=words):
        pipeline.sample(request_)


def test_guidance_needs_a_trained_null(pipeline):
    pipeline.conditioner = Conditioner(pipeline.class_names)
    with pytest.raises(InputError, match="without condition dropout"):
        pipeline.sample(Request(guidance=1.0))


def test_sampling_leaves_the_callers_gradients_alone(pipeline):
    states = pipeline.states(Request(["dog"], steps=2))
    next(states)
    assert torch.is_grad_enabled()


def test_missing_things(pipeline, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Pipeline.load(tmp_path / "none")
    with pytest.raises(InputError, match="neither a run"):
        Pipeline.load(tmp_path)
    pipeline.save(tmp_path / "model")
    (tmp_path / "model" / "flow.safetensors").unlink()
    with pytest.raises(InputError, match=r"flow\.safetensors is missing"):
        Pipeline.load(tmp_path / "model")


def test_altered_weights(pipeline, tmp_path):
    pipeline.save(tmp_path)
    path = tmp_path / "flow.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="SHA-256 differs"):
        Pipeline.load(tmp_path)


def test_newer_format(pipeline, tmp_path):
    pipeline.save(tmp_path)
    rewrite(tmp_path, format_version=99, library_version="9.0", something_new=True)
    with pytest.raises(InputError, match=r"9.0 in format 99.*Upgrade"):
        Pipeline.load(tmp_path)


def test_other_conventions(pipeline, tmp_path):
    pipeline.save(tmp_path)
    rewrite(tmp_path, conventions={**CONVENTIONS, "time": "t=1 data"})
    with pytest.raises(InputError, match="another convention for time"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("change", ["shape", "extra", "lost"])
def test_wrong_tensors(pipeline, tmp_path, change):
    pipeline.save(tmp_path)
    path = tmp_path / "flow.safetensors"
    weights = load_file(path)
    if change == "shape":
        weights["patch_in.weight"] = weights["patch_in.weight"][:-1].contiguous()
    elif change == "extra":
        weights["surplus"] = torch.zeros(2)
    else:
        del weights["patch_in.weight"]
    save_file(weights, path)
    rewrite(tmp_path, weights={"flow.safetensors": sha256(path)})
    with pytest.raises(InputError, match="patch_in.weight: config.json asks for" if change != "extra" else "surplus"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1}'])
def test_broken_config(pipeline, tmp_path, text):
    pipeline.save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as error:
        Pipeline.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_failed_save_keeps_the_former_model(pipeline, tmp_path, monkeypatch):
    pipeline.save(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_text()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rectiflow.models.weights.save_file", full)
    with pytest.raises(InputError, match=r"No space left on device.*kept"):
        pipeline.save(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == before
    Pipeline.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"guidance_kind": "apq"}, "unknown guidance 'apq'. Did you mean 'apg'"),
        ({"guidance_kind": "apg:radios=2", "guidance": 1.0}, "unknown setting of the guidance apg 'radios'"),
        ({"guidance_kind": "cfg:mix=2"}, "has no settings"),
        ({"guidance_kind": "auto", "guidance": 1.0}, "--guide RUN"),
        ({"schedule": "trigg"}, "Did you mean 'trig'"),
    ],
)
def test_bad_views_of_a_model_are_one_line(pipeline, asked, words):
    with pytest.raises(InputError) as error:
        pipeline.sample(Request(steps=2, **asked))
    assert words in str(error.value)


def test_a_model_is_sampled_on_other_paths_and_guided_by_a_weaker_one(pipeline):
    plain = pipeline.sample(Request(count=1, steps=2)).pixels
    for schedule in ("trig", "vp-linear", "ve", "polynomial"):
        moved = pipeline.sample(Request(count=1, steps=4, schedule=schedule, grid="log-snr")).pixels
        assert bool(torch.isfinite(moved).all())
    same = pipeline.sample(Request(count=1, steps=2, guidance=2.0, guidance_kind="auto", guide=pipeline)).pixels
    assert torch.allclose(same, plain, atol=1e-5)


def test_another_path_keeps_the_models_settings_of_it_and_its_own_path_keeps_the_shift(pipeline):
    own = pipeline._flow_on(pipeline._path("trig"))
    assert own is pipeline.flow
    assert own.shift == 1.5
    pipeline.flow_config = pipeline.flow_config.model_copy(update={"sigma_max": 20.0, "exponent": 3.0})
    assert pipeline._flow_on(pipeline._path("ve")).schedule.prior_std == pytest.approx(20.0)
    assert pipeline._flow_on(pipeline._path("polynomial")).schedule.exponent == 3.0


def test_a_guide_on_another_path_is_brought_to_the_models(pipeline):
    """The same network on another path, asked where the model is: its estimates are on the model's path."""
    other = Pipeline(Flow.build(pipeline.flow.network, FlowConfig()), FlowConfig(), NETWORK, (1, 4, 4), KNOWN)
    moved = other._flow_on(pipeline._path(""))
    assert type(moved.schedule) is type(pipeline.flow.schedule)
    request = Request(count=1, steps=3, guidance=1.0, guidance_kind="auto", guide=other)
    assert bool(torch.isfinite(pipeline.sample(request).pixels).all())


def test_bfloat16_changes_the_arithmetic_and_not_the_picture(pipeline):
    exact = pipeline.sample(Request(count=2, steps=4, guidance=1.0)).pixels
    rough = pipeline.sample(Request(count=2, steps=4, guidance=1.0, precision="bfloat16")).pixels
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert float((exact - rough).abs().max()) < 0.05 * float(exact.abs().max())
    with pytest.raises(InputError, match="precision"):
        pipeline.sample(Request(precision="float16"))


def test_a_guide_that_cannot_guide_is_refused(pipeline):
    """Without "auto" it would be silently left out."""
    request = {"count": 1, "steps": 2, "guidance": 1.0}
    with pytest.raises(InputError, match="weaker model of --guidance-kind auto; cfg asks none"):
        pipeline.sample(Request(**request, guide=pipeline))
    other = replace(pipeline, conditioner=Conditioner(("cat", "dog")))
    with pytest.raises(InputError, match="2 classes; expected"):
        pipeline.sample(Request(**request, guidance_kind="auto", guide=other))
    one_step = replace(pipeline, flow=Flow(pipeline.flow.network, one_step=True))
    with pytest.raises(InputError, match="one-step"):
        pipeline.sample(Request(**request, guidance_kind="auto", guide=one_step))
