import pytest

from rectiflow.base.errors import InputError
from rectiflow.conditioning.labels import Labels


def test_names_become_labels():
    assert Labels(["cat", "dog", "3"])(["dog", 3, "cat", "dog"]).labels.tolist() == [1, 2, 0, 1]


def test_unknown_class():
    with pytest.raises(InputError, match=r"unknown class 'dgo'. Did you mean 'dog'"):
        Labels(["cat", "dog"])(["dgo"])
