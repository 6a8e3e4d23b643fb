"""Byte pairs: every text goes in and comes out, the same captions give the same tokens."""

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectiflow.base.errors import InputError
from rectiflow.base.files import sha256
from rectiflow.conditioning.tokens import Tokens
from rectiflow.networks.config import TokensInput

CAPTIONS = [f"a {colour} {digit} in the {place}" for colour in ("red", "blue") for digit in range(10) for place in "ab"]
GIVES = TokensInput(width=32, depth=1)


def learn(captions=CAPTIONS, vocabulary=300, length=16):
    return Tokens.train(captions, vocabulary, length, GIVES)


TOKENS = learn(length=4096)


def read_back(tokens, text, row=0):
    return tokens.tokenizer.decode(text.values[row][text.mask[row]].tolist())


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200).filter(str.strip))
def test_any_text_comes_back(caption):
    text = TOKENS([caption])
    assert read_back(TOKENS, text).removeprefix(" ") == caption.removeprefix(" ")


@pytest.mark.parametrize(
    "caption", ["a 👩‍🚀 on 🌕", "zero\0byte", "\x01\x7f", "数字の七", "a" * 1000, "\u202eright to left"]
)
def test_strange_texts_come_back(caption):
    assert read_back(TOKENS, TOKENS([caption])).removeprefix(" ") == caption


def test_ids_are_those_that_the_network_is_told_of():
    text = TOKENS(CAPTIONS)
    assert TOKENS.gives.vocabulary == TOKENS.tokenizer.get_vocab_size() <= 300
    assert int(text.values.max()) < TOKENS.gives.vocabulary
    assert TOKENS.gives.width == 32


@pytest.mark.parametrize("mark", ["<end>", "<start>", "</s>", "<|endoftext|>"])
def test_marks_of_other_tokenizers_are_words(mark):
    assert read_back(TOKENS, TOKENS([f"a {mark} b"])).strip() == f"a {mark} b"


def test_the_same_captions_give_the_same_tokens(tmp_path):
    one, other = learn(), learn([*reversed(CAPTIONS), *CAPTIONS, ""])
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    assert learn([*CAPTIONS, "another word"]).tokenizer.to_str() != one.tokenizer.to_str()


def test_more_pairs_make_captions_shorter():
    counts = [int(learn(vocabulary=n, length=4096)(CAPTIONS).mask.sum()) for n in (258, 270, 280)]
    assert counts[0] > counts[1] > counts[2]


def test_white_space_is_the_null_caption():
    text = TOKENS(["", " \n\t", "a red 7"])
    assert text.mask.any(1).tolist() == [False, False, True]
    assert not TOKENS([""]).mask.any()
    assert TOKENS([""]).values.shape == (1, 7)


@pytest.mark.parametrize(("tokens", "width"), [(2, 7), (6, 7), (7, 7), (8, 15), (15, 15), (16, 23)])
def test_lengths_are_one_less_than_a_multiple_of_eight(tokens, width):
    plain = learn(["y"], length=64)
    text = plain(["", "x" * (tokens - 1)])  # and the space before it
    assert int(text.mask[1].sum()) == tokens
    assert text.values.shape == text.mask.shape == (2, width)
    assert not text.values[~text.mask].any()


def test_what_is_too_long_is_cut_and_told_where_once(caplog):
    tokens = learn(["y"], length=8)
    with caplog.at_level(logging.WARNING, "rectiflow"):
        text = tokens(["short", "a much longer caption", "another long one"])
    assert text.mask.sum(1).tolist() == [6, 8, 8]
    assert read_back(tokens, text, 1) == " a much "
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "a caption of 22 tokens is cut to 8, after '… a much ' (said once)."


def test_an_enormous_caption_is_cut(caplog):
    text = learn()(["seven red cats " * 200_000])
    assert int(text.mask.sum()) == 16


def test_none_has_a_caption():
    with pytest.raises(InputError, match="none of the pictures has a caption"):
        learn(["", ""])


def test_saved_and_loaded_by_hash(tmp_path):
    tokens = learn()
    record, hashes = tokens.save(tmp_path, 3)
    assert record.file == "tokenizer-3.json"
    assert list(hashes) == ["tokenizer-3.json"]
    back = Tokens.load(record, tmp_path, hashes)
    one, other = tokens([*CAPTIONS, "", "ünknown 🌕"]), back([*CAPTIONS, "", "ünknown 🌕"])
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.mask, other.mask)
    assert (back.gives, back.length) == (tokens.gives, tokens.length)
    path = tmp_path / "tokenizer-3.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="SHA-256 differs"):
        Tokens.load(record, tmp_path, hashes)
    path.write_text("{}")
    with pytest.raises(InputError, match="no tokenizer"):
        Tokens.load(record, tmp_path, {path.name: sha256(path)})
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        Tokens.load(record, tmp_path, hashes)
    with pytest.raises(InputError, match="missing"):  # nothing outside the model folder is read
        Tokens.load(record.model_copy(update={"file": "../tokenizer-3.json"}), tmp_path, hashes)


def test_byte_pairs_are_learned_from_all_captions_of_a_picture(tmp_path):
    from rectiflow.__main__ import main
    from rectiflow.pipeline import Pipeline
    from tests.data.test_folder import picture

    rows = [{"file_name": f"{i}.png", "text": ["a hill", "zeppelin zeppelin zeppelin"]} for i in range(24)]
    for i in range(24):
        picture(tmp_path / "data" / f"{i}.png", ("red", "green", "blue")[i % 3], (8, 8 + i % 2))
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["latent=null", "network={patch: 8, width: 32, depth: 1, heads: 1}", "data.size=8", "steps=1", "batch=4"]
    settings = [*small, "precision=float32", "every={preview: 0, held_out: 0}"]
    folder = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    assert main(["train", "text", *folder, "--set", *settings]) == 0
    assert int(Pipeline.load(tmp_path / "run").conditioner.encoders[0](["zeppelin"]).mask.sum()) == 1
