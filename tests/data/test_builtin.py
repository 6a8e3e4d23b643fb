import torch
from sklearn.datasets import load_digits

from rectiflow.data.builtin import digits


def test_digits_are_split_by_writer():
    data = digits()
    assert (len(data.train), len(data.held_out)) == (1415, 382)
    assert data.shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789")
    raw = load_digits()
    levels = (torch.cat([data.train.fetch(torch.arange(1415)), data.held_out.fetch(torch.arange(382))]) + 1) * 8
    assert torch.equal(levels[:, 0].double(), torch.from_numpy(raw.images))  # every level kept, in [−1, 1]
    assert data.held_out.labels.tolist() == raw.target[1415:].tolist()
    assert data.levels == 17
