"""What `benchmarks/throughput.py` counts, divides and keeps; and that it takes the trainer apart as the trainer is."""

import json
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rectiflow.networks.layers import attend

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
sys.path.append(str(ROOT / "benchmarks"))

from kept import keep, kept, measured  # noqa: E402
from tables_of import throughput as tables  # noqa: E402
from throughput_of import gpu, networks, ranks, sides, stages, use  # noqa: E402
from throughput_of.counted import Layout, Rates, product, seen  # noqa: E402


def test_flops_are_those_that_torch_counts():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 49, 5)
    )
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    found = seen(lambda: network(x).square().sum())
    with FlopCounterMode(display=False) as counter:
        network(x).square().sum().backward()
    assert found.flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("way", ["fused", "as written", "few tokens"])
def test_attention_is_its_products_however_it_is_computed(way):
    batch, heads, tokens, others, features = 2, 3, 8, 12, 16
    dtype = torch.bfloat16 if way == "few tokens" else torch.float32
    query = torch.randn(batch, heads, tokens, features, dtype=dtype, requires_grad=True)
    key, value = torch.randn(2, batch, heads, others, features, dtype=dtype).requires_grad_().unbind()
    backend = SDPBackend.MATH if way == "as written" else SDPBackend.FLASH_ATTENTION

    def loss():
        with sdpa_kernel(backend):
            how = attend if way == "few tokens" else F.scaled_dot_product_attention
            return how(query, key, value).float().square().sum()

    found = seen(loss)
    forward = 2 * (2 * batch * heads * tokens * others * features)
    assert found.flops == 3 * forward  # two products forward, four backward
    assert {each.kind for each in found.counts} == {"attention"}


def test_operands_lie_as_they_lay():
    lay = Layout.of(torch.randn(3, 4, 5).transpose(1, 2)[:2])
    made = lay.made(CPU)
    assert (tuple(made.shape), made.stride()) == ((2, 5, 4), (20, 1, 5))
    assert lay.turned == Layout((2, 4, 5), (20, 5, 1), torch.float32)
    repeated = Layout.of(torch.randn(1, 5).expand(4, 5)).made(CPU)
    assert repeated.stride() == (0, 1)
    assert torch.equal(repeated[0], repeated[3])


def rates_of(*times: tuple[str, int, list[float]]) -> Rates:
    """Of products m×2 and 2×3 with these kinds, counts and seconds; the m tells them apart."""
    right = Layout((2, 3), (3, 1), torch.float32)
    made = [product(kind, Layout((m, 2), (2, 1), torch.float32), right) for m, (kind, _, _) in enumerate(times, 1)]
    rates = Rates({found: number for found, (_, number, _) in zip(made, times, strict=True)}, CPU)
    rates.times = {found: seconds for found, (_, _, seconds) in zip(made, times, strict=True)}
    return rates


def test_rates_are_of_medians_each_as_often_as_a_step_has_it():
    rates = rates_of(("linear", 3, [0.1, 0.2, 9.0]), ("attention", 2, [0.5]))
    assert rates.seconds() == pytest.approx(3 * 0.2 + 2 * 0.5)
    assert rates.seconds(["linear"]) == pytest.approx(0.6)
    assert rates.flops() == 3 * 12 + 2 * 24
    assert rates.rate() == pytest.approx((36 + 48) / 1.6)
    assert rates.rate(["convolution"]) == 0


def test_products_are_really_done():
    rates = Rates(seen(lambda: nn.Linear(4, 4)(torch.ones(8, 4)).sum()).counts, CPU)
    rates.turn(3)
    assert rates.times
    assert all(len(times) == 3 and min(times) > 0 for times in rates.times.values())


def test_utilisation_is_the_products_time_over_the_steps():
    rates = rates_of(("linear", 4, [0.1]), ("attention", 1, [0.2]))
    side = sides.Side("rectiflow", lambda: nn.Linear(1, 1), sides.Setting(), use.noise((1,), 4, 2), batch=6)
    side.rates = [3.0, 5.0, 4.0]  # a step takes 1.5 s
    told = use.of_side(side, rates, rates.flops())
    assert told["step_seconds"] == 1.5
    assert told["utilisation"] == pytest.approx(0.6 / 1.5, abs=1e-4)
    by_linear_maps = rates.flops() / 1.5 / (rates.flops(["linear"]) / 0.4)
    assert told["utilisation_by_linear_maps"] == pytest.approx(by_linear_maps, abs=1e-4)


@pytest.mark.parametrize("name", list(networks.SUBJECTS))
def test_peers_do_about_the_same_work(name):
    subject = networks.SUBJECTS[name]
    flops = {}
    for owner in sides.OWNERS:
        data = subject.data(0, 2)
        side = sides.Side(owner, lambda owner=owner: subject.make(owner), sides.Setting(), data, batch=1)
        assert side.network(data[0], torch.tensor([0.2, 0.7]), data[1]).shape == data[0].shape
        flops[owner] = side.facts()["gflop_per_image"]
    assert flops["rectiflow"] == pytest.approx(flops["diffusers"], rel=0.1)


def test_only_diffusers_has_a_default_and_only_convolutions_a_format():
    ours, theirs = (sides.settings_of(owner, False, bfloat16=True) for owner in sides.OWNERS)
    assert theirs == [sides.DEFAULT, *ours]
    assert [each.words for each in theirs] == ["default", "fp32", "fp32 compiled", "bf16", "bf16 compiled"]
    assert sides.settings_of("rectiflow", False, bfloat16=True, written=True) == ours
    more = sides.settings_of("diffusers", False, bfloat16=True, written=True)[len(theirs) :]
    assert [each.words for each in more] == ["bf16 attention as written", "bf16 compiled attention as written"]
    formats = sides.settings_of("rectiflow", True, bfloat16=False)
    assert [each.words for each in formats][-2:] == ["fp32 channels_last", "fp32 compiled channels_last"]


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_attention_as_written_is_the_same_map(name):
    subject = networks.SUBJECTS[name]
    torch.manual_seed(0)
    network, data = subject.make("diffusers"), subject.data(0, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    fused = network(data[0], torch.tensor([0.2, 0.7]), data[1])
    before = {type(part.processor) for part in network.modules() if isinstance(part, sides.Attention)}
    sides.prepared(network, "diffusers", sides.Setting(written=True))
    after = {type(part.processor) for part in network.modules() if isinstance(part, sides.Attention)}
    assert (len(before), after) == (1, {sides.AttnProcessor})
    assert sides.AttnProcessor not in before
    assert torch.allclose(network(data[0], torch.tensor([0.2, 0.7]), data[1]), fused, atol=1e-4)


def test_a_peer_in_training_leaves_out_no_labels():
    """diffusers' transformer would leave out a tenth, anew in each block, in held-out checks too."""
    subject = networks.SUBJECTS["dit"]
    network, data = subject.make("diffusers"), subject.data(0, 64)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    t = torch.full((64,), 0.5)
    assert torch.equal(network.train()(data[0], t, data[1]), network.train()(data[0], t, data[1]))


class Told:
    """A side whose rates are told beforehand."""

    def __init__(self, name, order):
        self.name, self.order, self.rates = name, order, []

    def turn(self):
        self.order.append(self.name)
        self.rates.append(float(len(self.order)))


def test_sides_take_turns_in_a_turning_order():
    order: list[str] = []
    told = [Told(name, order) for name in "abc"]
    between = count()
    sides.alternate(told, 3, lambda: next(between))
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert [side.rates for side in told] == [[4, 9, 11], [5, 7, 12], [6, 8, 10]]  # the first turn does not count
    assert next(between) == 3


RATES = {
    "rectiflow fp32": [10.0, 11.0, 12.0],
    "rectiflow bf16": [20.0, 20.0, 20.0],
    "rectiflow bf16 compiled": [36.0, 30.0, 33.0],
    "diffusers default": [11.0, 10.0, 12.0],
    "diffusers bf16 compiled": [20.0, 22.0, 24.0],
}


def test_ratios_are_of_medians_to_the_default_and_to_the_best():
    found = sides.compared(RATES)
    assert found["to_default"] == {
        "of": "rectiflow bf16 compiled",
        "over": "diffusers default",
        "ratio": 3.0,
        "least": 2.75,
        "most": 3.273,
    }
    assert (found["to_best"]["over"], found["to_best"]["ratio"]) == ("diffusers bf16 compiled", 1.5)
    plain = found["as_it_comes_to_default"]
    assert (plain["of"], plain["ratio"]) == ("rectiflow bf16", 1.818)


def test_parts_are_timed_without_what_they_call(monkeypatch):
    seconds = iter([0.0, 1.0, 3.0, 4.0, 4.5, 10.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(seconds))
    clock = stages.Clock()
    inner = clock.timed("data", lambda: None)

    def outer():
        inner()
        inner()

    clock.timed("forward", outer)()
    assert clock.seconds == {stages.FIRST: 2.0, "data": 0.5, "forward": 7.5}


def test_a_part_that_fails_is_closed():
    clock = stages.Clock()
    with pytest.raises(ZeroDivisionError):
        clock.timed("data", lambda: 1 / 0)()
    clock.timed("forward", lambda: None)()
    assert set(clock.seconds) == {stages.FIRST, "forward"}
    assert clock._inside == []


def test_the_trainer_is_taken_apart(tmp_path):
    small = {"width": 16, "depth": 1, "heads": 1}
    found = {}
    for kind in ("whole", "bare"):
        config = stages.config_of("digits", tmp_path, kind == "whole", 4)
        config = config.model_copy(
            update={"network": config.network.model_copy(update=small), "batch": 8, "precision": "float32"}
        )
        found[kind] = stages.trained(config, tmp_path / kind, kind == "whole")
    whole, bare = found["whole"], found["bare"]
    assert {stages.FIRST, "data", "forward", "backward", "optimiser", "averages", "logging", "checkpoints"} <= set(
        whole["parts"]
    )
    assert (tmp_path / "whole" / "checkpoints" / "step-00000004").is_dir()
    assert not (tmp_path / "bare" / "checkpoints").exists()
    assert (whole["steps"], bare["steps"]) == (4, 4)
    shares = stages.shares(whole)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share < 1 for share in shares.values())
    told = stages.summed({"whole": [whole], "bare": [bare]})
    assert told["kept_up"] == pytest.approx(sum(shares[name] for name in stages.KEPT_UP), abs=1e-4)
    assert told["kept_up_by_difference"] == pytest.approx(1 - bare["cpu"] / whole["cpu"], abs=1e-4)


def test_processes_together_are_set_against_one():
    one = [{"wall": 10.0, "cpu": 8.0, "whole_cpu": 12.0, "loss": 1.0}]
    two = [{"wall": 6.0, "cpu": 9.0, "whole_cpu": 18.0, "loss": 1.0}]
    apart = [{"wall": 5.0, "cpu": 8.4, "whole_cpu": 16.0, "loss": 1.0}]
    found = ranks.summed({"one": one, "two": two, "apart": apart})
    assert (found["added"], found["added_with_start"], found["wall_ratio"]) == (0.125, 0.5, 0.6)
    assert (found["added_by_being_two"], found["added_by_the_job"]) == (0.05, 0.075)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name, key):
    assert gpu.key_of(name) == key
    assert gpu.file_name(name) == f"throughput-{key or 'nvidia-l40'}.json"


def test_the_part_of_a_gpu_on_a_processor(monkeypatch, tmp_path):
    small = gpu.CONFIG.model_copy(update={"width": 32, "depth": 1, "heads": 2})
    makes = {"rectiflow": lambda: gpu.build(small), "diffusers": lambda: gpu.PeerDiT(2, 16, 1, 8, gpu.CLASSES)}
    whole, slow = gpu.torch.device, replace(gpu.GPUS["h100"], bfloat16=50e9)
    monkeypatch.setattr(gpu, "GPUS", {"h100": slow})
    monkeypatch.setattr(gpu, "MAKES", makes)
    monkeypatch.setattr(gpu, "SHAPE", (4, 8, 8))
    monkeypatch.setattr(gpu, "BATCHES", (2,))
    monkeypatch.setattr(gpu, "KINDS", [kind for kind in gpu.KINDS if not kind[1].compiled])
    monkeypatch.setattr(gpu.torch, "device", lambda name: whole("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    found = measured(lambda: gpu.training(2), "python benchmarks/throughput.py --gpu")
    keep(tmp_path / "h100.json", "dit-xl", found)
    assert set(found["sides"]) == {"rectiflow bf16", "diffusers bf16"}
    for side in found["sides"].values():
        assert side["utilisation_of_stated"] == pytest.approx(side["gflop_per_second"] / 50, abs=2e-3)
        assert side["utilisation_of_stated"] > 0
    assert found["images_per_second"].keys() == {*found["sides"], "diffusers default"}
    assert "NVIDIA H100 80GB HBM3" in tables.gpu(kept(tmp_path / "h100.json"))


def test_a_part_replaces_its_own_results(tmp_path):
    path = tmp_path / "results" / "throughput.json"
    keep(path, "dit", {"ratio": 1})
    keep(path, "unet", {"ratio": 2})
    keep(path, "dit", {"ratio": 3})
    assert kept(path) == {"dit": {"ratio": 3}, "unet": {"ratio": 2}}
    path.write_text(json.dumps({"machine": {}, "dit": {"ratio": 4}}))  # of the time before results had parts
    keep(path, "unet", {"ratio": 5})
    assert kept(path) == {"unet": {"ratio": 5}}


CONDITIONS = measured(lambda: {}, "python benchmarks/throughput.py")


def entry(**more) -> dict:
    return {
        **CONDITIONS,
        "title": "transformer",
        "settings": {"batch": 4, "optimiser": "AdamW", "rounds": 3, "seconds": 2.0, "side": 64, "count": 2, "steps": 9},
        "facts": {owner: {"parameters": 2_500_000, "gflop_per_image": 1.25} for owner in sides.OWNERS},
        "aims": {"to_default": 3.0},
        **sides.compared(RATES),
        **more,
    }


def test_tables_tell_the_results():
    assert CONDITIONS["cores_used_by_others"] >= 0
    ways = {name: sides.compared(RATES) for name in ("alone", "against a discriminator", "dit")}
    result = {"dit": entry(), "autoencoder": entry(**ways), "sampling": entry(**ways)}
    text = tables.training(result)
    assert "over diffusers' default (default): **3.00** (2.75 to 3.27, aim ≥ 3)" in text
    assert "| rectiflow bf16 compiled | 33.0 |" in text
    assert "2.50 M parameters, 1.25 GFLOP" in text
    assert "**1.50**" in tables.sampling(result)
    brief = tables.throughput(result)
    assert "| training: transformer | **3.00** (2.75 to 3.27, aim ≥ 3) | **1.50**" in brief
    assert "| training: autoencoder, alone |" in brief
    assert tables.startup(result) == tables.NOT_YET


def test_tables_of_where_the_time_goes():
    run = {"wall": 2.0, "cpu": 4.0, "steps": 10, "parts": {"data": 0.02, "forward": 1.9, "logging": 0.04}}
    recipe = stages.summed({"whole": [run], "bare": [{**run, "cpu": 3.8}]})
    settings = {"rounds": 1, "precision": "precision=float32"}
    profile = tables.profile({"profile": entry(recipes={"digits": recipe}, aims=stages.AIMS, settings=settings)})
    assert "| data | 1.00% |" in profile
    assert "| logging, averages and checkpoints | **2.00%** |" in profile
    assert "| the same by difference | 5.00% |" in profile
    assert "10 steps of 200 ms, its first batch after 0.0 s" in profile
    ways = {"one": (2.0, 2.0, 4.0), "two": (1.0, 2.2, 8.0), "apart": (1.0, 2.1, 8.0)}
    case = ranks.summed({way: [dict(zip(("wall", "cpu", "whole_cpu"), row, strict=True))] for way, row in ways.items()})
    text = tables.ddp({"ddp": entry(cases={"digits": case}, aim=ranks.AIM, settings=settings)})
    assert "| digits | 2.0 | 2.1 | 2.2 | **10.0%** | 5.0% | 5.0% | 100.0% | 0.50 |" in text
