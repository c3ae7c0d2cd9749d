"""Sentences for names that do not exist: which one was meant, and which ones there are."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from robustness_geometry.checks import InputError, refuse

__all__ = ["no_such", "plain_name", "unknown_key"]

NAME = re.compile(r"\w[\w.+-]{0,99}")


def unknown_key(key: str, names: Iterable[str]) -> NoReturn:
    """Refuse a key of the configuration that does not exist.

    Args:
        key: the whole key, such as ``attack.nrom``.
        names: the keys that exist in its place, such as ``norm`` and ``steps``.

    Raises:
        InputError: always.
    """
    known = sorted(names)
    parent, _, name = key.rpartition(".")
    before = f"{parent}." if parent else ""
    what = f"no key of {parent}" if parent else "no key"
    raise InputError(f"{key} is {what}{_meant(before, name, known)}{_listed('Keys', known)}", key)


def no_such(key: str, value: str, names: Iterable[str], title: str = "Options") -> NoReturn:
    """Refuse a value that is not one of the names that ``key`` may have.

    Args:
        key: such as ``attack`` or ``experiments``.
        value: the name that does not exist.
        names: the names that exist.
        title: what the names are called in the sentence.

    Raises:
        InputError: always.
    """
    known = sorted(names)
    raise InputError(
        f"{key} cannot be {value!r}{_meant('', value, known)}{_listed(title, known)}", key
    )


def plain_name(key: str, name: object) -> None:
    """Check that a name that becomes a folder's leads nowhere else.

    Args:
        key: what is named, such as ``networks``.
        name: the name.

    Raises:
        InputError: it is empty, too long, hidden, a path, or holds blanks or what shells read.
    """
    if not NAME.fullmatch(str(name)):
        refuse(key, name, "a plain name of at most 100 letters, digits and . _ - +, and no path")


def _meant(before: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {before}{close[0]}?" if close else "."


def _listed(title: str, known: list[str]) -> str:
    return f" {title}: {', '.join(known)}" if known else ""
