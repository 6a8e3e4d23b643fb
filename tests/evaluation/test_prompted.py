"""Models of captions in a report: adherence, CLIP score; models in 16 bits and those that ship with the package."""

import json

import pytest
import torch
from transformers import CLIPImageProcessor

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.data.scenes import Scenes
from rectiflow.evaluation.clip_score import clip_score
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import features
from rectiflow.evaluation.scores import drawn
from rectiflow.models.folder import SHIPPED, find_model
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from tests.conditioning import tiny

SIZE = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
SETTINGS = [
    "latent=null",
    "network={patch: 8, width: 32, depth: 1, heads: 1}",
    "text.encoders=[{kind: learned, vocabulary: 400, depth: 1}]",
    *("steps=3", "batch=8", "precision=float32", "compile=false", "every.preview=0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "run"
    assert main(["train", "scenes", "--run", str(folder), "--set", *SETTINGS]) == 0
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tiny.KINDS["clip-full"]().save_pretrained(folder)
    CLIPImageProcessor(**SIZE).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_report_has_adherence_over_guidance_and_the_clip_score(run, clip, capsys):
    options = ["--count", "24", "--steps", "2", "--weights", "0", "2", "--features", str(clip)]
    assert main(["evaluate", str(run), "--adherence", *options]) == 0
    result = json.loads((run / "evaluation" / "report.json").read_text())
    found = result["adherence"]
    assert [row["w"] for row in found["rows"]] == [0, 2]
    assert found["prompts"] == 24
    assert found["ceiling"]["seen"]["place"]["value"] > 0.99
    assert all(row["seen"]["whole"]["value"] < 0.3 for row in found["rows"])  # three steps teach nothing
    assert set(result["clip_score"]) == {"samples", "real"}
    page = (run / "evaluation" / "report.md").read_text()
    assert "## Adherence to 24 prompts" in page
    assert "CLIP score" in page
    assert (run / "evaluation" / "adherence.png").stat().st_size > 5000
    assert "seen combinations at w =" in capsys.readouterr().out


def test_the_clip_score_is_the_cosine_of_two_features(clip):
    by = features(str(clip), None)
    pixels = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1
    captions = ["a red 7", "a", "a much longer caption than the other two of them"]
    found = clip_score(by, pixels, captions)
    for i in range(3):
        given = tiny.tokenizer()(captions[i], truncation=True, return_tensors="pt")
        told = by.model.get_text_features(given["input_ids"], given["attention_mask"])
        told = told if isinstance(told, torch.Tensor) else told.pooler_output
        expected = 100 * torch.cosine_similarity(by(pixels[i : i + 1]), told.double()).clamp_min(0)
        torch.testing.assert_close(found[i : i + 1], expected, atol=1e-3, rtol=1e-4)
    assert not getattr(features("pixels", None), "reads", False)


def test_every_sample_keeps_its_prompt_where_there_are_fewer_captions_than_samples(run):
    pipeline, few = Pipeline.load(run), Scenes(digits().held_out, "held out", 5)
    samples, _ = drawn(pipeline, few, EvaluateConfig(count=23, steps=1))
    captions = few.captions(torch.arange(5))
    whole = pipeline.sample(Request(prompts=captions, count=5, steps=1))
    assert len(samples.prompts) == 23
    for pixels, prompt in zip(samples.pixels, samples.prompts, strict=True):
        nearest = int((whole.pixels - pixels).abs().flatten(1).amax(1).argmin())
        assert whole.prompts[nearest] == captions[nearest // 5] == prompt


def test_adherence_of_what_takes_no_prompts_is_refused(tmp_path, capsys):
    small = ["network={patch: 4, width: 16, depth: 1, heads: 2}", "steps=2", "batch=8", "precision=float32"]
    assert main(["train", "digits", "--run", str(tmp_path / "run"), "--set", *small, "every.preview=0"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--adherence"]) == 2
    assert "rectiflow train scenes" in capsys.readouterr().err


def test_a_model_in_16_bits_makes_the_same_pictures_in_half_the_size(run, tmp_path, capsys):
    assert main(["export", str(run), "--dtype", "float16", "--out", str(tmp_path / "half")]) == 0
    sizes = [(folder / "flow.safetensors").stat().st_size for folder in (run / "model", tmp_path / "half")]
    assert sizes[1] < 0.55 * sizes[0]
    asked = Request(prompts=["a red 7 in the middle"], count=2, steps=4)
    whole, half = (Pipeline.load(folder).sample(asked).pixels for folder in (run, tmp_path / "half"))
    torch.testing.assert_close(whole, half, atol=1 / 127.5, rtol=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    capsys.readouterr()
    # Nothing is overwritten: neither others' files nor a model, the exported one itself and a file in the way.
    for there in (tmp_path / "mine", tmp_path / "half", run / "model", tmp_path / "mine" / "letter.txt"):
        for more in (["--dtype", "bfloat16"], []):
            assert main(["export", str(run), *more, "--out", str(there)]) == 2
            assert f"{there} is there already; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "half" / "flow.safetensors").stat().st_size == sizes[1]


def test_a_folder_here_comes_before_a_model_that_ships_with_us(run, tmp_path, monkeypatch):
    monkeypatch.setattr("rectiflow.models.folder.SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    main(["export", str(run), "--dtype", "float16", "--out", str(tmp_path / "shipped" / "scenes")])
    monkeypatch.chdir(tmp_path)
    assert find_model(type(tmp_path)("scenes")) == tmp_path / "shipped" / "scenes"
    Pipeline.load(run).save(tmp_path / "scenes")
    assert find_model(type(tmp_path)("scenes")) == type(tmp_path)("scenes")
    with pytest.raises(InputError, match="no run or model"):
        find_model(type(tmp_path)("scene"))
    assert SHIPPED.name == "shipped"
