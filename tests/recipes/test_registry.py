import pytest

from rectiflow.base.errors import InputError
from rectiflow.networks.config import DiTConfig, UNetConfig
from rectiflow.recipes.registry import RECIPES, resolve
from rectiflow.training.config import OptimiserConfig


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
    assert config.network.patch == 2  # what no layer names stays the recipe's


def test_a_preset_yields_to_later_and_to_explicit_numbers(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("network: {preset: S/2}\n")
    assert resolve("digits", file).network.width == 384
    assert resolve("digits", file, ["network.width=96"]).network.width == 96
    config = resolve("digits", None, ["network.width=96", "network.preset=B/4"])
    assert (config.network.width, config.network.depth, config.network.patch) == (96, 12, 4)


def test_another_kind_of_network_drops_the_numbers_of_the_former(tmp_path):
    assert resolve("digits", None, ["network.kind=unet"]).network == UNetConfig()
    assert resolve("digits", None, ["network.width=32", "network.kind=unet"]).network == UNetConfig(width=32)
    file = tmp_path / "mine.yaml"
    file.write_text("network: {kind: unet, classes: 0, blocks: 1}\n")
    assert resolve("digits", file, ["network.width=32"]).network == UNetConfig(classes=0, blocks=1, width=32)
    assert resolve("digits", file, ["network.kind=dit"]).network == DiTConfig(classes=0)
    assert resolve("digits", file, ["network.kind=unet"]).network == UNetConfig(classes=0, blocks=1)


def test_a_rate_chosen_for_one_kind_is_not_that_of_another():
    default = OptimiserConfig()
    assert resolve("digits").optimiser.lr != default.lr
    config = resolve("digits", None, ["network.kind=unet"])
    assert config.optimiser == resolve("digits").optimiser.model_copy(update={"lr": default.lr})
    assert resolve("digits", None, ["network.kind=unet", "optimiser.lr=0.5"]).optimiser.lr == 0.5
    assert resolve("digits", None, ["network.kind=dit"]) == resolve("digits")


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("digit", [], "unknown recipe 'digit'. Did you mean 'digits'"),
        ("digits", ["netwrk.width=3"], "Did you mean 'network'"),
        ("digits", ["optimiser.lr=fast"], "optimiser.lr"),
        ("digits", ["flow.schedule=trigg"], "Did you mean 'trig'"),
        ("digits", ["network.preset=S2"], "unknown preset 'S2'"),
        ("digits", ["network.kind=unt"], "unknown network.kind 'unt'. Did you mean 'unet'"),
        ("digits", ["network.kind=unet", "network.preset=S/2"], "preset 'S/2' is of network.kind=dit, not unet"),
        ("digits", ["network.kind=unet", "network.patch=2"], "unknown setting 'network.patch'"),
        ("digits", ["network.kind=unet", "network.blocs=2"], "Did you mean 'blocks'"),
        ("digits", ["network.dropout=0.1"], "Settings there: kind, channels, classes, patch"),
        ("digits", ["network=3"], "network: "),
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


def test_the_stage_of_pictures_is_laid_over_where_there_is_one():
    asked = resolve("clips", None, ["latent.pictures.steps=7", "latent.pictures.network.width=24"]).latent
    assert (asked.pictures.steps, asked.pictures.network.width, asked.pictures.network.temporal) == (7, 24, 1)
    assert asked.train == resolve("clips").latent.train
    with pytest.raises(InputError, match=r"latent has no latent\.pictures"):
        resolve("latent", None, ["latent.pictures.steps=7"])
