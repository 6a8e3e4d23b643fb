"""Names with settings after them, such as "ddpm:eta=0.5" or "apg:momentum=0,radius=2"."""

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any, TypeVar

from rectiflow.base.errors import InputError, unknown

Made = TypeVar("Made")


def described(kind: str, description: str, makers: Mapping[str, Callable[..., Made]], given: Mapping[str, Any]) -> Made:
    """What a description names, made with its settings.

    Args:
        kind: what is described, for errors: "solver" or "guidance".
        description: NAME or NAME:SETTING=VALUE,…; the settings are arguments of the maker with a default.
        makers: by name.
        given: arguments that are no settings; a maker is given those that it has.

    Raises:
        InputError: no such name or setting, or a value that it cannot have.
    """
    name, _, words = description.partition(":")
    if name not in makers:
        raise unknown(kind, name, makers)
    maker = makers[name]
    mine = {key: value for key, value in given.items() if key in signature(maker).parameters}
    return maker(**mine, **_settings(f"{kind} {name}", words, maker, given))


def _settings(what: str, words: str, maker: Callable[..., Any], given: Collection[str]) -> dict[str, float | str]:
    """ "a=1,b=x" as the arguments of `maker`, each of the type of its default."""
    known = {key: value.default for key, value in signature(maker).parameters.items() if key not in given}
    found: dict[str, float | str] = {}
    for part in words.split(",") if words else []:
        key, _, value = part.partition("=")
        if not known:
            raise InputError(f"the {what} has no settings, received '{words}'; leave out what follows its name.")
        if key not in known:
            raise unknown(f"setting of the {what}", key, known)
        try:
            found[key] = type(known[key])(value)
        except ValueError:
            raise InputError(f"{what}: {key} expects a number such as {known[key]:g}, received '{value}'.") from None
    return found
