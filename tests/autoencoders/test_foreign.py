"""Autoencoders of diffusers, read and written: the same latents and pictures as diffusers gives, and every refusal."""

import json
import math
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.autoencoders.foreign import find_foreign, is_foreign, read_foreign, write_foreign
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.autoencoders.posterior import Posterior
from rectiflow.autoencoders.vae import VAE
from rectiflow.base.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEANS, DEVIATIONS = [0.3, -1.2, 0.05, 2.0], [0.7, 3.0, 1.1, 0.2]
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
LAYOUTS = {
    "SD": {"scaling_factor": 0.18215},
    "SDXL": {"scaling_factor": 0.13025, "latents_mean": MEANS, "latents_std": DEVIATIONS},
    "SD3": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, **NO_QUANT},
    "FLUX": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, **NO_QUANT},
    "plain middle, two levels": {
        "mid_block_add_attention": False,
        "block_out_channels": (16, 24),
        "layers_per_block": 1,
    },
    "grey, five levels": {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8, 16, 24, 24),
        "norm_num_groups": 4,
        "layers_per_block": 3,
    },
    "one level": {"block_out_channels": (16,)},
}


def random_weights(network, seed=0):
    """Every weight random, those of norms too; of a size that keeps values near 1 through the layers."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.normal_(generator=draw)
            if weight.dim() > 1:
                weight.div_(math.sqrt(weight[0].numel()))
            else:
                weight.mul_(0.3).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network.eval()


def theirs(**changes):
    levels = len(changes.get("block_out_channels", (16, 32, 32)))
    settings = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        **changes,
    }
    return random_weights(diffusers.AutoencoderKL(**settings))


def ours(mean=None, deviation=None, **changes):
    settings = {"channels": 3, "latent_channels": 4, "width": 16, "multipliers": (1, 2, 3), **changes}
    return LatentSpace(random_weights(VAE(AutoencoderConfig(**settings)), seed=1), mean, deviation)


def normalised(config, latents):
    """(l − shift)·scale as the pipelines of diffusers compute it."""
    if config.latents_mean is not None:
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def denormalised(config, latents):
    if config.latents_mean is not None:
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (config.shift_factor or 0.0)


def pictures(channels=3, sides=(32, 48)):
    return torch.rand(2, channels, *sides, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def assert_equal(space, kl):
    """Encoding and decoding by ours and by diffusers, raw and normalised, to 1e-5."""

    def near(left, right):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)

    x = pictures(kl.config.in_channels)
    said = kl.encode(x).latent_dist
    raw = space.network.encode(x)
    near(denormalised(kl.config, space.encode(x)), said.mean)
    near(space.encode(x), normalised(kl.config, said.mean))
    spread = normalised(kl.config, said.mean + said.std) - normalised(kl.config, said.mean)
    near((Posterior.of(space.moments(x)).log_variance / 2).exp(), spread)
    z = torch.randn(space.encode(x).shape, generator=torch.Generator().manual_seed(3))
    near(space.decode(z), kl.decode(denormalised(kl.config, z)).sample)
    assert said.mean.std() > 0.1  # there is something to compare
    assert space.decode(z).std() > 0.1
    return raw, said


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_diffusers_wrote(name, tmp_path):
    kl = theirs(**LAYOUTS[name])
    kl.save_pretrained(tmp_path)
    space = read_foreign(tmp_path)
    raw, said = assert_equal(space, kl)
    torch.testing.assert_close(raw.mean, said.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw.log_variance, said.logvar, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in space.network.parameters())
    assert not space.network.training


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_we_write_of_theirs(name, tmp_path):
    """Read and written again: the same file, except where statistics of channels were folded; diffusers agrees."""
    kl = theirs(**LAYOUTS[name])
    kl.save_pretrained(tmp_path / "a")
    space = read_foreign(tmp_path / "a")
    write_foreign(space, tmp_path / "b")
    back = diffusers.AutoencoderKL.from_pretrained(tmp_path / "b")
    assert_equal(space, back)
    if name != "SDXL":
        before, after = (load_file(tmp_path / folder / WEIGHTS) for folder in "ab")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert back.config.scaling_factor == kl.config.scaling_factor
        assert back.config.shift_factor == (kl.config.shift_factor or 0.0)


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_what_we_write_of_ours(quantised, attention, tmp_path):
    space = ours(torch.full((4,), 0.2), torch.full((4,), 1.7), quantised=quantised, attention=attention, blocks=2)
    write_foreign(space, tmp_path / "a")
    kl, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(space, kl)
    assert kl.config.use_quant_conv == kl.config.use_post_quant_conv == quantised
    back = read_foreign(tmp_path / "a")
    assert back.network.config == space.network.config
    assert torch.equal(back.mean, space.mean)
    assert torch.equal(back.deviation, space.deviation)
    assert all(torch.equal(back.network.state_dict()[key], value) for key, value in space.network.state_dict().items())


@pytest.mark.parametrize("quantised", [True, False])
def test_statistics_of_channels_are_folded(quantised, tmp_path):
    """A reader that knows nothing but scaling_factor has normalised latents; and so have we when we read it."""
    space = ours(torch.tensor(MEANS), torch.tensor(DEVIATIONS), quantised=quantised)
    write_foreign(space, tmp_path / "a")
    kl = diffusers.AutoencoderKL.from_pretrained(tmp_path / "a")
    assert kl.config.scaling_factor == 1.0
    assert not kl.config.shift_factor
    assert kl.config.latents_mean is None
    assert_equal(space, kl)
    x = pictures()
    with torch.no_grad():
        moments, folded = space.moments(x), read_foreign(tmp_path / "a")
        torch.testing.assert_close(kl.encode(x).latent_dist.parameters, moments, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded.moments(x), moments, rtol=1e-5, atol=1e-5)
        # The statistics are far enough from 0 and 1 for folding to be seen.
        assert (space.network.encode(x).moments - moments).abs().max() > 0.5
    assert torch.equal(folded.deviation, torch.ones(4))


def test_a_folder_of_something_else_is_kept(tmp_path):
    space = ours()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than an AutoencoderKL; choose a folder that is not"):
        write_foreign(space, tmp_path)
    pipeline = tmp_path / "pipeline"
    write_foreign(space, pipeline / "vae")
    with pytest.raises(InputError, match="holds something other"):
        write_foreign(space, pipeline)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    write_foreign(ours(blocks=2), pipeline / "vae")  # an AutoencoderKL is replaced
    assert read_foreign(pipeline).network.config.blocks == 2


def test_a_failed_write_keeps_the_former_folder(tmp_path, monkeypatch):
    write_foreign(ours(), tmp_path / "a")
    before = (tmp_path / "a" / WEIGHTS).read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rectiflow.autoencoders.foreign.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_foreign(ours(blocks=2), tmp_path / "a")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def folder(tmp_path):
    """A small AutoencoderKL as diffusers writes it."""
    theirs().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def same(folder, weights):
    space = read_foreign(folder)
    for name, value in read_foreign(weights).network.state_dict().items():
        torch.testing.assert_close(space.network.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("convolutions", [False, True])
def test_former_names_of_attention(folder, tmp_path, convolutions):
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / WEIGHTS)
    old = {}
    for name, value in weights.items():
        for new, word in former.items():
            name = name.replace(f".{new}.", f".{word}.")
        is_matrix = "mid_block.attentions" in name and value.dim() == 2
        old[name] = value[..., None, None].contiguous() if convolutions and is_matrix else value
    assert sum(".proj_attn." in name for name in old) == 4
    shutil.copytree(folder, tmp_path / "old")
    save_file(old, tmp_path / "old" / WEIGHTS)
    same(tmp_path / "old", folder)


def test_half_precision_shards_and_pipelines(folder, tmp_path):
    """The fp16 file beside no other, a file in parts, and the vae/ of a pipeline; always float32 in memory."""
    kl = diffusers.AutoencoderKL.from_pretrained(folder)
    kl.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    same(tmp_path / "parts", folder)
    shutil.copytree(folder, tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "config.json").write_text("{}")
    same(tmp_path / "pipeline", folder)
    for dtype, variant in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        kl.to(dtype).save_pretrained(tmp_path / variant, variant=variant)
        assert (tmp_path / variant / f"diffusion_pytorch_model.{variant}.safetensors").exists()
        space = read_foreign(tmp_path / variant)
        assert {value.dtype for value in space.network.state_dict().values()} == {torch.float32}
        assert_equal(space, kl.to(torch.float32))


def test_settings_that_are_absent_are_those_of_diffusers(folder):
    """A config.json of an early release: no shift, no quant conv flags, no attention flag."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for name in ("shift_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "scaling_factor"):
        del settings[name]
    path.write_text(json.dumps(settings))
    assert_equal(read_foreign(folder), diffusers.AutoencoderKL.from_pretrained(folder))


REFUSED = {
    "class": ({"_class_name": "AutoencoderDC"}, r"_class_name: expected AutoencoderKL, .*; received AutoencoderDC\."),
    "class of FLUX.2": ({"_class_name": "AutoencoderKLFlux2"}, "received AutoencoderKLFlux2. Choose another"),
    "down": (
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"]},
        "down_block_types: expected DownEncoderBlock2D for each of the 3 .* received DownEncoderBlock2D, AttnDown",
    ),
    "up": ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "up_block_types: expected UpDecoderBlock2D for each of the 3"),
    "activation": ({"act_fn": "gelu"}, "act_fn: expected silu; received gelu"),
    "channels": ({"out_channels": 4}, "out_channels: expected 3, as in_channels is; received 4"),
    "quant": (
        {"use_post_quant_conv": False},
        "use_post_quant_conv: expected True, as use_quant_conv is; received False",
    ),
    "groups": ({"norm_num_groups": 5}, "5 groups do not divide the 16 channels"),
    "scale": ({"scaling_factor": 0}, "scaling_factor: input should be greater than 0, received 0"),
    "words": ({"layers_per_block": "two"}, "layers_per_block: input should be a valid integer"),
    "mean alone": ({"latents_mean": MEANS}, "expected the first two together, or neither of them; received"),
    "both kinds": (
        {"latents_mean": MEANS, "latents_std": DEVIATIONS, "shift_factor": 0.1},
        "latents_mean, latents_std and shift_factor: expected the first two together",
    ),
    "too few": ({"latents_mean": MEANS[:3], "latents_std": DEVIATIONS}, "expected 4 numbers each, the latter positive"),
    "negative": ({"latents_mean": MEANS, "latents_std": [1, 1, 1, -1]}, "expected 4 numbers each, the latter positive"),
    "shape": (
        {"latent_channels": 5},
        r"encoder.conv_out.weight: expected \(10, 32, 3, 3\), received \(8, 32, 3, 3\).* and 4 more\. Restore",
    ),
    "missing": ({"layers_per_block": 3}, r"encoder.down_blocks.0.resnets.2.norm1.weight is missing"),
    "left over": ({"mid_block_add_attention": False}, r"coder.mid_block.attentions.0.*is left over.*and 17 more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, folder):
    changes, message = REFUSED[name]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message) as caught:
        read_foreign(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


class Fires:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_are_never_loaded(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    torch.save({"x": Fires(tmp_path / "fired")}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=rf"has no {WEIGHTS}\. Pickles .* never loaded; convert one"):
        read_foreign(folder)
    assert not (tmp_path / "fired").exists()


def test_damaged_files(folder, tmp_path):
    whole = load_file(folder / WEIGHTS)
    save_file(whole | {"quant_conv.bias": torch.zeros(8, dtype=torch.int32)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"quant_conv\.bias: expected floats of 16 to 64 bits, received torch\.int32"):
        read_foreign(folder)
    (folder / WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="is no safetensors file"):
        read_foreign(folder)
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    save_file(whole, tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"names the file \.\./elsewhere\.safetensors, which is not beside it"):
        read_foreign(folder)
    index.write_text("[]")
    with pytest.raises(InputError, match="has no weight_map"):
        read_foreign(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read \(JSONDecodeError\)"):
        read_foreign(folder)
    assert not is_foreign(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"is no autoencoder: it has neither config\.json nor vae/config\.json"):
        read_foreign(folder)


def test_is_foreign(folder, tmp_path):
    assert is_foreign(folder)
    shutil.copytree(folder, tmp_path / "pipeline" / "vae")
    assert is_foreign(tmp_path / "pipeline")
    assert not is_foreign(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"format_version": 1}')
    assert not is_foreign(tmp_path)


def test_find_foreign(folder, tmp_path, monkeypatch):
    """The hub's client, stood in for: what is asked of it is only what the autoencoder is made of."""
    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        if repo_id == "no/where":
            raise FileNotFoundError("404 no/where\nmore")
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_foreign(str(folder)) == folder
    assert asked == []
    assert read_foreign(find_foreign("some/vae")).factor == 4
    files = [
        "config.json",
        "vae/config.json",
        f"vae/{WEIGHTS}",
        "vae/diffusion_pytorch_model.bin",
        f"unet/{WEIGHTS}",
        "flux1-dev.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    wanted = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=asked))
    assert wanted == ["config.json", "vae/config.json", f"vae/{WEIGHTS}", "diffusion_pytorch_model.fp16.safetensors"]
    with pytest.raises(
        InputError, match=r"at no/where, neither here nor on the hub \(FileNotFoundError: 404 no/where\)"
    ):
        find_foreign("no/where")
    with pytest.raises(InputError, match="expected a folder, or a name on the hub like org/name"):
        find_foreign("nowhere")
