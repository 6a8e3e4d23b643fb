from dataclasses import replace

import torch

from rectiflow.base.condition import Condition, Text


def test_null_and_drop():
    condition = Condition(torch.tensor([3, 1, 4]))
    assert condition.null().labels.tolist() == [-1, -1, -1]
    assert condition.drop(torch.tensor([True, False, True])).labels.tolist() == [-1, 1, -1]


def test_concatenate_is_the_inverse_of_select():
    condition = Condition(torch.tensor([3, 1, 4, 1]))
    parts = [condition.select(slice(0, 1)), condition.select(torch.tensor([1, 2, 3]))]
    assert Condition.concatenate(parts).labels.tolist() == [3, 1, 4, 1]
    assert [len(part) for part in parts] == [1, 3]


def told(lengths, longest):
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = Text(torch.arange(1, len(lengths) * longest + 1).reshape(len(lengths), longest) * mask, mask)
    states = Text(torch.randn(len(lengths), longest, 3) * mask[..., None], mask, torch.randn(len(lengths), 2))
    return Condition(torch.full((len(lengths),), -1), (ids, states), torch.randn(len(lengths), 2, 4, 4))


def test_batches_of_captions_of_other_lengths_are_padded_and_come_apart_again():
    short, long = told((2, 0), 3), told((5,), 6)
    both = Condition.concatenate([short, long])
    assert both.texts[0].values.shape == (3, 6)
    assert both.texts[1].values.shape == (3, 6, 3)
    assert both.texts[0].mask.sum(1).tolist() == [2, 0, 5]
    assert torch.equal(both.select(slice(0, 2)).texts[0].values[:, :3], short.texts[0].values)
    assert torch.equal(both.select(torch.tensor([2])).texts[1].pooled, long.texts[1].pooled)
    assert torch.equal(both.image, torch.cat([short.image, long.image]))


def test_each_part_is_dropped_on_its_own_and_null_is_all_of_it():
    condition, some = told((2, 3), 3), torch.tensor([True, False])
    assert condition.drop_text(0, some).texts[0].mask.any(1).tolist() == [False, True]
    assert torch.equal(condition.drop_text(0, some).texts[1].mask, condition.texts[1].mask)
    assert condition.drop_image(some).image.flatten(1).any(1).tolist() == [False, True]
    null = condition.null()
    assert not any(text.mask.any() for text in null.texts)
    assert not null.image.any()


def test_a_negative_prompt_takes_the_place_of_null_and_follows_its_rows():
    away = told((1, 2), 3)
    condition = replace(told((2, 3), 3), against=away)
    assert condition.null() is away
    assert torch.equal(condition.select(torch.tensor([1])).null().texts[0].values, away.texts[0].values[1:])
    plain = told((3,), 3)
    joined = Condition.concatenate([condition, plain]).null()
    assert joined.texts[0].mask.any(1).tolist() == [True, True, False]
    assert condition.drop(torch.tensor([True, True])).against is None
