"""Frozen encoders against direct calls of `transformers`."""

import logging
import shutil
import sys
import threading

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection, T5ForConditionalGeneration

from rectiflow.base.errors import InputError
from rectiflow.conditioning import encoder_files
from rectiflow.conditioning.config import FrozenConfig, TextConfig
from rectiflow.conditioning.encoder_files import encoder_folder
from rectiflow.conditioning.encoders import encoders, saved_encoders
from rectiflow.conditioning.frozen import Frozen
from rectiflow.networks.config import StatesInput
from tests.conditioning.tiny import CAPTIONS, KINDS, LIMIT, encoder

GIVES = {
    "clip": StatesInput(features=32, pooled=32),
    "clip-projection": StatesInput(features=32, pooled=24),
    "clip-full": StatesInput(features=32, pooled=20),
    "t5": StatesInput(features=40),
    "t5-full": StatesInput(features=40),
    "bert": StatesInput(features=32),
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def frozen(folder, kind="t5", **settings):
    if not folder.exists():
        encoder(folder, kind)
    config = FrozenConfig(name=str(folder), **settings)
    return Frozen(config, encoder_folder(config.name))


def direct(kind, folder):
    """States and pooled vectors of CAPTIONS as the model gives them, padded by its own tokenizer."""
    given = AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt")
    asked = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if kind == "t5-full":
            model = T5ForConditionalGeneration.from_pretrained(folder).eval().encoder
        elif kind == "clip-full":
            model = CLIPModel.from_pretrained(folder).eval()
            pooled = model.text_projection(model.text_model(**asked).pooler_output)
            return model.text_model(**asked).last_hidden_state, pooled, given["attention_mask"].bool()
        elif kind == "clip-projection":
            model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
            output = model(**asked)
            return output.last_hidden_state, output.text_embeds, given["attention_mask"].bool()
        else:
            model = type(KINDS[kind]()).from_pretrained(folder).eval()
        output = model(**asked)
    pooled = output.pooler_output if kind == "clip" else None
    return output.last_hidden_state, pooled, given["attention_mask"].bool()


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_library(kind, tmp_path):
    reader = frozen(tmp_path / "encoder", kind)
    assert reader.gives == GIVES[kind]
    text = reader(CAPTIONS)
    states, pooled, mask = direct(kind, tmp_path / "encoder")
    length = mask.shape[1]
    assert torch.equal(text.mask[:, :length], mask)
    assert not text.mask[:, length:].any()
    torch.testing.assert_close(text.values[:, :length][mask], states[mask], **CLOSE)
    assert not text.values[~text.mask].any()
    if pooled is None:
        assert text.pooled is None
    else:
        torch.testing.assert_close(text.pooled, pooled, **CLOSE)
    assert text.values.std() > 0.1
    assert text.values.dtype == torch.float32
    assert not text.values.requires_grad
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_neighbours_matter(kind, tmp_path):
    reader = frozen(tmp_path / "encoder", kind)
    many = [*CAPTIONS, *(f"{word} {i}" for i in range(40) for word in ("a", "green"))]  # more than one batch
    together = reader(many)
    for row, caption in enumerate(many):
        alone = reader([caption])
        length = int(alone.mask.sum())
        assert alone.values.shape[1] % 8 == 7
        torch.testing.assert_close(alone.values[0, :length], together.values[row, :length], **CLOSE)
        if alone.pooled is not None:
            torch.testing.assert_close(alone.pooled[0], together.pooled[row], **CLOSE)
    again = reader([many[5], "", many[5], many[0]])
    assert torch.equal(again.values[0], again.values[2])


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_the_null_caption_never_asks_the_model(kind, tmp_path):
    reader = frozen(tmp_path / "encoder", kind)
    text = reader(["", "  \n"])
    assert reader._model is None  # weights wait until a caption asks
    assert text.values.shape == (2, 7, reader.gives.features)
    assert not text.mask.any()
    text = reader(["", CAPTIONS[0]])
    assert reader._model is not None
    assert text.mask.any(1).tolist() == [False, True]
    if text.pooled is not None:
        assert not text.pooled[0].any()
    reader.release()
    assert reader._model is None
    assert torch.equal(reader(["", CAPTIONS[0]]).values, text.values)


@pytest.mark.parametrize(("kind", "asked"), [("t5", None), ("t5", 6), ("clip", None), ("clip", 6)])
def test_what_is_too_long_is_cut_and_told_where_once(kind, asked, tmp_path, caplog):
    reader = frozen(tmp_path / "encoder", kind, length=asked)
    limit = asked or LIMIT
    with caplog.at_level(logging.WARNING):
        text = reader(["seven", "x" * 100, "y" * 1000 + "🌕"])
    assert text.mask.sum(1).tolist()[1:] == [limit, limit]
    lines = [record.getMessage() for record in caplog.records]
    kept = " " + "x" * (limit - 3)
    assert lines == [
        f"a caption of 103 tokens is cut to the {limit} of {tmp_path / 'encoder'}, after '…{kept}' (said once)."
    ]
    torch.testing.assert_close(text.values[1], reader(["x" * (limit - 3)]).values[0, : text.values.shape[1]], **CLOSE)


def test_a_length_beyond_the_encoders_places_is_refused(tmp_path):
    with pytest.raises(InputError, match="length 17 is beyond the 16 tokens"):
        frozen(tmp_path / "clip", "clip", length=17)
    assert frozen(tmp_path / "t5", "t5", length=40).length == 40  # relative positions have no end
    assert int(frozen(tmp_path / "t5", length=40)(["x" * 100]).mask.sum()) == 40


def test_bfloat16_is_near(tmp_path):
    one, other = (frozen(tmp_path / "encoder", precision=p)(CAPTIONS).values for p in ("float32", "bfloat16"))
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert (one - other).abs().mean() < 0.02 * one.abs().mean() + 0.02


def test_autocast_around_it_changes_nothing(tmp_path):
    reader = frozen(tmp_path / "encoder")
    plain = reader(CAPTIONS).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reader(CAPTIONS).values, plain)


def test_many_threads_at_once(tmp_path):
    reader = frozen(tmp_path / "encoder", "clip")
    expected = frozen(tmp_path / "encoder", "clip")(CAPTIONS).values
    found, problems = [], []

    def ask():
        try:
            found.extend(reader([*CAPTIONS, "x" * 50]).values[:4, : expected.shape[1]] for _ in range(10))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for each in found:
        torch.testing.assert_close(each, expected, **CLOSE)


def test_loading_is_silent_and_leaves_the_librarys_settings(tmp_path, capfd):
    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    encoder(tmp_path / "encoder", "clip-full")
    capfd.readouterr()
    frozen(tmp_path / "encoder")(CAPTIONS)
    assert capfd.readouterr() == ("", "")
    after = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    assert after == before


def test_weights_in_several_files(tmp_path):
    whole = frozen(tmp_path / "whole")
    encoder(tmp_path / "parts", "t5")
    (tmp_path / "parts" / "model.safetensors").unlink()
    transformers.T5EncoderModel.from_pretrained(tmp_path / "whole").save_pretrained(
        tmp_path / "parts", max_shard_size="20KB"
    )
    parts = frozen(tmp_path / "parts")
    assert len(encoder_files.weight_files(tmp_path / "parts")) > 1
    assert torch.equal(parts(CAPTIONS).values, whole(CAPTIONS).values)
    assert parts.sha256 != whole.sha256
    encoder_files.weight_files(tmp_path / "parts")[1].unlink()
    with pytest.raises(
        InputError, match=r"model-00002-of.*is missing; a text encoder's weights are read as safetensors"
    ):
        frozen(tmp_path / "parts")


def test_no_pickle_is_read(tmp_path):
    encoder(tmp_path / "encoder", "t5")
    torch.save(load_file(tmp_path / "encoder" / "model.safetensors"), tmp_path / "encoder" / "pytorch_model.bin")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors alone: save it again with save_pretrained"):
        frozen(tmp_path / "encoder")


def test_what_is_no_encoder_is_told_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="no text encoder at nowhere/at/all; expected a folder that transformers wrote"
    ):
        frozen_at("nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        frozen_at(tmp_path / "empty")
    with pytest.raises(InputError, match="no text encoder at org/name, neither here nor on the hub"):
        frozen_at("org/name")
    encoder(tmp_path / "torn", "t5")
    path = tmp_path / "torn" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="torn cannot be read as a text encoder") as caught:
        frozen_at(tmp_path / "torn")(CAPTIONS)
    assert "\n" not in str(caught.value)
    encoder(tmp_path / "lacking", "t5")
    path = tmp_path / "lacking" / "model.safetensors"
    weights = load_file(path)
    weights.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack encoder\.block\.1"):
        frozen_at(tmp_path / "lacking")(CAPTIONS)
    encoder(tmp_path / "wordless", "t5")
    (tmp_path / "wordless" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="wordless holds no tokenizer"):
        frozen_at(tmp_path / "wordless")
    (tmp_path / "wordless" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"wordless/tokenizer\.json cannot be read, expected a JSON object; restore"):
        frozen_at(tmp_path / "wordless")
    (tmp_path / "wordless" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="wordless cannot be read as a text encoder"):
        frozen_at(tmp_path / "wordless")
    for broken in ('{"model_type": "t5"', "[]", "\udcff"):
        (tmp_path / "wordless" / "config.json").write_text(broken, errors="surrogateescape")
        with pytest.raises(InputError, match=r"wordless/config\.json cannot be read, expected a JSON object; restore"):
            frozen_at(tmp_path / "wordless")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"need transformers: pip install 'rectiflow\[text\]'"):
        frozen_at(tmp_path / "torn")


def frozen_at(name):
    return Frozen(FrozenConfig(name=str(name)), encoder_folder(str(name)))


@pytest.mark.parametrize("embed", [False, True])
def test_saved_and_loaded(embed, tmp_path):
    (tmp_path / "model").mkdir()
    (reader,) = encoders(
        TextConfig(encoders=(FrozenConfig(name=str(encoder(tmp_path / "clip", "clip")), length=12, embed=embed),)), []
    )
    record, hashes = reader.save(tmp_path / "model", 2)
    assert record.sha256 == encoder_files.digest(tmp_path / "clip")
    if embed:
        files = {f"encoder-2/{path.name}" for path in (tmp_path / "clip").iterdir()}
        assert set(hashes) == files
        shutil.rmtree(tmp_path / "clip")
    else:
        assert not hashes
        assert not list((tmp_path / "model").iterdir())
    (back,) = saved_encoders([record], tmp_path / "model", hashes)
    assert (back.length, back.gives) == (12, reader.gives)
    again, more = back.save(tmp_path, 2)
    assert again == record
    assert more == hashes
    if not embed:
        assert torch.equal(back(CAPTIONS).values, reader(CAPTIONS).values)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("embed", [False, True])
def test_an_encoder_that_was_altered_is_refused(name, embed, tmp_path):
    (tmp_path / "model").mkdir()
    record, hashes = frozen(tmp_path / "encoder", embed=embed).save(tmp_path / "model", 0)
    path = (tmp_path / "model" / "encoder-0" if embed else tmp_path / "encoder") / name
    content = bytearray(path.read_bytes())
    if name == "tokenizer.json":
        content += b" "  # another file that says the same
    else:
        content[-10] ^= 1
    path.unlink()
    path.write_bytes(content)
    reason = "SHA-256 differs" if embed else "not the text encoder that .* was trained with"
    with pytest.raises(InputError, match=reason):
        saved_encoders([record], tmp_path / "model", hashes)
    path.unlink()
    with pytest.raises(InputError, match="missing" if embed or name == "model.safetensors" else "no tokenizer"):
        saved_encoders([record], tmp_path / "model", hashes)


def test_an_encoder_that_is_gone_is_told_with_the_remedy(tmp_path):
    record, _ = frozen(tmp_path / "encoder").save(tmp_path, 0)
    shutil.move(tmp_path / "encoder", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"put it back there, or write its new place as 'name' into .*config\.json"):
        saved_encoders([record], tmp_path / "model", {})
    moved = record.model_copy(update={"name": str(tmp_path / "elsewhere")})
    assert saved_encoders([moved], tmp_path / "model", {})[0].sha256 == record.sha256


def test_names_mean_the_same_from_everywhere(tmp_path, monkeypatch):
    encoder(tmp_path / "encoder", "t5")
    monkeypatch.chdir(tmp_path)
    config = TextConfig(encoders=(FrozenConfig(name="encoder"), FrozenConfig(name="google-t5/t5-small")), cache="c")
    found = config.absolute()
    assert [each.name for each in found.encoders] == [str(tmp_path / "encoder"), "google-t5/t5-small"]
    assert found.cache == str(tmp_path / "c")


def test_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "encoder")

    encoder(tmp_path / "encoder", "t5")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    reader = frozen_at("org/name")
    assert reader(CAPTIONS).mask.any()
    assert reader.save(tmp_path, 0)[0].name == "org/name"
    assert asked[0][0] == "org/name"
    assert not any("bin" in pattern for pattern in asked[0][1])
