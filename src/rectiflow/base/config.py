"""Typed configurations: layers merged in order, `a.b=value` settings, and one-line errors. Never imports torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rectiflow.base.errors import InputError, near_miss


class Config(BaseModel):
    """Base of every configuration: immutable, and a field that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str) -> Self:
        """Validate `values`.

        Args:
            values: nested mapping of plain values.
            origin: where they come from, named in the error.

        Raises:
            InputError: the first wrong field or value, in one line, with the near miss.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(f"{origin}: {_first_problem(cls, error)}") from error


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `layer` put over it, mapping by mapping."""
    merged = dict(base)
    for name, value in layer.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_setting(setting: str) -> dict[str, Any]:
    """Turn `network.width=64` into `{"network": {"width": 64}}`; the value is YAML.

    Raises:
        InputError: there is no `=` or the value is not YAML.
    """
    path, separator, text = setting.partition("=")
    if not separator or not path:
        raise InputError(f"expected a setting like network.width=64, received '{setting}'.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of --set {path} is not YAML: '{text}'.") from error
    return nested(path, value)


def nested(path: str, value: Any) -> dict[str, Any]:
    """`{"network": {"width": 64}}` of `network.width` and 64."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not YAML"
        raise InputError(f"cannot read {path}: {reason}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, expected a mapping of settings.")
    return values


def write_yaml(values: Mapping[str, Any]) -> str:
    """Text of a YAML mapping in the order given."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def differences(mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names whose values differ between two nested mappings."""
    names: list[str] = []
    for name in sorted(set(mine) | set(other)):
        left, right = mine.get(name), other.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            names.append(f"{prefix}{name}")
    return names


def _first_problem(config: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors()[0]
    path, owner = _place(config, [str(part) for part in problem["loc"]])
    name = ".".join(path)
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = problem["ctx"]
        name = ".".join([*path, context["discriminator"].strip("'")])
        if "tag" not in context:
            return f"{name} is missing."
        tags, received = _choices(problem), context["tag"]
        return f"{name}: expected one of {', '.join(tags)}; received '{received}'.{near_miss(received, tags)}"
    if problem["type"] == "extra_forbidden":
        fields = list(owner.model_fields)
        return f"unknown setting '{name}'.{near_miss(path[-1], fields)} Settings there: {', '.join(fields)}."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    received = problem.get("input")
    guess = near_miss(received, _choices(problem)) if isinstance(received, str) else ""
    shown = "" if isinstance(received, dict) else f", received {received!r}"
    return f"{name + ': ' if name else ''}{message.rstrip('.')}{shown}.{guess}"


def _choices(problem: Any) -> list[str]:
    context = problem.get("ctx", {})
    expected = str(context.get("expected", context.get("expected_tags", "")))
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _place(config: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], type[BaseModel]]:
    """The path of a problem in our fields, and the configuration that has, or lacks, the last one."""
    path: list[str] = []
    tags: dict[str, type[BaseModel]] = {}
    inner: type[BaseModel] | None = config
    for part in loc:
        if part in tags:  # pydantic puts the tag of a discriminated union into the path; it is no field of ours
            inner, tags = tags[part], {}
            continue
        path.append(part)
        config, tags = inner or config, {}
        field = config.model_fields.get(part)
        inner = None
        if field is not None:
            found = [c for c in (field.annotation, *get_args(field.annotation)) if _is_model(c)]
            inner = found[0] if found else None
            if isinstance(field.discriminator, str):
                tags = {str(c.model_fields[field.discriminator].default): c for c in found}
    return path, config


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
