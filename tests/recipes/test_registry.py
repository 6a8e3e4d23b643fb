import pytest

from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import RECIPES, resolve


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_recipe_is_complete_and_carries_its_name(name):
    assert resolve(name) == RECIPES[name]()
    assert resolve(name).recipe == name


def test_later_layers_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("network: {width: 32, depth: 2}\nsteps: 7\n")
    config = resolve("digits", file, ["network.depth=3", "flow.schedule=trig"])
    assert (config.network.width, config.network.depth, config.steps) == (32, 3, 7)
    assert config.flow.schedule == "trig"
    assert config.network.classes == 10  # what no layer names stays the recipe's


def test_a_preset_yields_to_later_and_to_explicit_numbers(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("network: {preset: S/2}\n")
    assert resolve("digits", file).network.width == 384
    assert resolve("digits", file, ["network.width=96"]).network.width == 96
    config = resolve("digits", None, ["network.width=96", "network.preset=B/4"])
    assert (config.network.width, config.network.depth, config.network.patch) == (96, 12, 4)


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("digit", [], "unknown recipe 'digit'. Did you mean 'digits'"),
        ("digits", ["netwrk.width=3"], "Did you mean 'network'"),
        ("digits", ["optimiser.lr=fast"], "optimiser.lr"),
        ("digits", ["flow.schedule=trigg"], "Did you mean 'trig'"),
        ("digits", ["network.preset=S2"], "unknown preset 'S2'"),
        ("digits", ["optimiser.betas=[0.9, 2]"], "optimiser.betas.1: input should be less than 1, received 2"),
        ("digits", ["flow.shift=.inf"], "flow.shift: input should be a finite number"),
        ("digits", ["steps=0"], "steps: input should be greater than or equal to 1, received 0"),
        ("digits", ["recipe=folder"], "is of recipe folder, not digits"),
        ("digits", ["width"], "expected a setting like"),
    ],
)
def test_bad_input_is_one_line(recipe, settings, words):
    with pytest.raises(InputError) as error:
        resolve(recipe, settings=settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
