import threading

import pytest
import torch

from rectiflow.sampling.cores import over_cores


def test_results_keep_their_order_and_threads_come_back():
    before = torch.get_num_threads()
    seen = set()

    def call(item):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return item**2

    assert over_cores(call, range(20)) == [i**2 for i in range(20)]
    assert torch.get_num_threads() == before
    if before > 1:
        assert {count for _, count in seen} == {1}
        assert threading.get_ident() not in {ident for ident, _ in seen}


def test_an_error_comes_through():
    def call(item):
        raise ValueError(f"item {item}")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="item 0"):
        over_cores(call, range(3))
    assert torch.get_num_threads() == before
