import pytest

from rectiflow.base.config import Config
from rectiflow.base.errors import InputError
from rectiflow.networks.build import build
from rectiflow.networks.config import KINDS, DiTConfig, Inputs, NetworkConfig, TokensInput, UNetConfig, fitted
from rectiflow.networks.presets import PRESETS, overlay

DIT = {"kind": "dit", "channels": 3, "classes": 7, "width": 64}

TEXTS = (TokensInput(vocabulary=9),)


class Holder(Config):
    network: NetworkConfig


def test_preset_is_expanded_where_it_stands():
    numbers = PRESETS["dit"]["S/4"]
    assert overlay(DIT, {"preset": "S/4"}) == {**DIT, **numbers}
    assert overlay(DIT, {"preset": "S/4", "width": 32}) == {**DIT, **numbers, "width": 32}
    assert overlay(DIT, {"width": 32}) == {**DIT, "width": 32}


def test_another_kind_keeps_channels_and_classes_alone():
    assert overlay(DIT, {"kind": "unet", "blocks": 3}) == {"kind": "unet", "channels": 3, "classes": 7, "blocks": 3}
    assert overlay(DIT, {"kind": "dit", "depth": 3}) == {**DIT, "depth": 3}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_preset_is_a_configuration_of_its_kind(kind):
    for name in PRESETS[kind]:
        assert KINDS[kind].parse(overlay({"kind": kind}, {"preset": name}), name).kind == kind


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"preset": "XL2"}, "unknown preset 'XL2'. Did you mean 'XL/2'"),
        ({"kind": ["unet"]}, "unknown network.kind"),
        ({"kind": "unt"}, "unknown network.kind 'unt'. Did you mean 'unet'"),
        ({"kind": "unet", "preset": "S/2"}, "preset 'S/2' is of network.kind=dit, not unet"),
        ({"preset": "unet-S"}, "preset 'unet-S' is of network.kind=unet, not dit"),
    ],
)
def test_impossible_layers(layer, words):
    with pytest.raises(InputError) as error:
        overlay(DIT, layer)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_left_open_is_taken_from_the_data(kind):
    config = KINDS[kind]()
    assert (config.channels, config.classes) == (None, None)
    found = fitted(config, Inputs(3, 7, TEXTS))
    assert (found.channels, found.classes) == (3, 7)
    assert fitted(found, Inputs(3, 7, TEXTS)) == found
    assert fitted(config.model_copy(update={"classes": 0}), Inputs(3, 7, TEXTS)).classes == 0  # unconditional by choice
    with pytest.raises(InputError, match=r"network.channels is 3, but the data have 1; set network.channels=1"):
        fitted(found, Inputs(1, 7, TEXTS))
    with pytest.raises(InputError, match=r"network.classes is 7, but the data have 2"):
        fitted(found, Inputs(3, 2, TEXTS))
    with pytest.raises(InputError, match="left to the data"):
        build(config)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"kind": "unet", "widht": 3}, ["'network.widht'", "Did you mean 'width'", "middle_attention"]),
        ({"kind": "unet", "patch": 3}, ["'network.patch'", "multipliers"]),
        ({"kind": "dit", "dropout": 0.1}, ["'network.dropout'", "modulation"]),
        ({"kind": "unet", "multipliers": [1, 0]}, ["network.multipliers.1: ", "greater than or equal to 1"]),
        ({"kind": "unet", "dropout": 1.0}, ["network.dropout: ", "less than 1"]),
        ({"kind": "unet", "attention": [3]}, ["network: attention at factor 3", "3 levels have the factors 1, 2, 4"]),
        ({"kind": "unet", "width": 9, "multipliers": [1, 2, 3]}, ["4 heads do not divide"]),
        ({"kind": "dit", "modulation": "blok"}, ["network.modulation: ", "Did you mean 'block'"]),
        (
            {"kind": "unett"},
            ["network.kind: expected one of dit, mmdit, video, unet; received 'unett'. Did you mean 'unet'"],
        ),
        ({"width": 8}, ["here: network.kind is missing."]),
    ],
)
def test_errors_name_fields_and_never_tags(network, words):
    with pytest.raises(InputError) as error:
        Holder.parse({"network": network}, "here")
    message = str(error.value)
    for word in words:
        assert word in message
    assert "network.unet" not in message
    assert "network.dit" not in message
    assert "\n" not in message


def test_attention_where_the_heads_fit():
    assert UNetConfig(width=9, attention=(), middle_attention=False).heads == 4
    with pytest.raises(InputError, match="multiple of 12"):
        DiTConfig.parse({"width": 32, "heads": 3}, "here")
