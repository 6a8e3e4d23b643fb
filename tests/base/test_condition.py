import torch

from rectiflow.base.condition import Condition


def test_null_and_drop():
    condition = Condition(torch.tensor([3, 1, 4]))
    assert condition.null().labels.tolist() == [-1, -1, -1]
    assert condition.drop(torch.tensor([True, False, True])).labels.tolist() == [-1, 1, -1]


def test_concatenate_is_the_inverse_of_select():
    condition = Condition(torch.tensor([3, 1, 4, 1]))
    parts = [condition.select(slice(0, 1)), condition.select(torch.tensor([1, 2, 3]))]
    assert Condition.concatenate(parts).labels.tolist() == [3, 1, 4, 1]
    assert [len(part) for part in parts] == [1, 3]
