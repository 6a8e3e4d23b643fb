import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rectiflow.base.config import Config, differences, merge, parse_setting, read_yaml, write_yaml
from rectiflow.base.errors import InputError


class Inner(Config):
    width: int = Field(4, ge=1)


class Outer(Config):
    inner: Inner = Inner()
    rate: float = 1.0


MAPPINGS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 3)),
)


def test_setting_is_yaml():
    assert parse_setting("a.b=[1, 2]") == {"a": {"b": [1, 2]}}
    assert parse_setting("a=1e-3") == {"a": "1e-3"}  # YAML 1.1 reads this as text; pydantic makes a number of it
    assert Outer.parse(parse_setting("rate=1e-3"), "--set").rate == 1e-3


@pytest.mark.parametrize("bad", ["a", "=3", "a=[1"])
def test_bad_setting_is_one_line(bad):
    with pytest.raises(InputError) as error:
        parse_setting(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {"widht": 3}}, ["inner.widht", "Did you mean 'width'?"]),
        ({"rte": 3}, ["'rte'", "Did you mean 'rate'?"]),
        ({"inner": {"width": 0}}, ["inner.width", "greater than or equal to 1", "received 0"]),
        ({"rate": "fast"}, ["rate", "valid number", "'fast'"]),
        ({"inner": 3}, ["inner"]),
    ],
)
def test_wrong_value_is_one_line_that_names_it(values, words):
    with pytest.raises(InputError) as error:
        Outer.parse(values, "here")
    assert str(error.value).startswith("here: ")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@given(MAPPINGS, MAPPINGS)
def test_merge_and_differences(base, layer):
    merged = merge(base, layer)
    assert merge(merged, layer) == merged
    assert merge(base, {}) == base
    assert differences(base, base) == []
    if merged != base:
        assert differences(merged, base)


def test_yaml_round_trip(tmp_path):
    values = {"a": {"b": [1, 2.5, "é"]}, "c": None}
    path = tmp_path / "x.yaml"
    path.write_text(write_yaml(values), encoding="utf-8")
    assert read_yaml(path) == values


@pytest.mark.parametrize("text", ["- 1", "a: [", "3"])
def test_unreadable_yaml(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x.yaml"):
        read_yaml(path)
    with pytest.raises(InputError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
