"""Pieces of work: a function, its tensors, and the files of its chunks."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from pipeline.storage import Chunk, read

__all__ = ["SHARED", "Job", "taken_up", "written"]

T = TypeVar("T")
SHARED = "shared"
"""Takes the place of the experiment's name for products that experiments share."""

_RUNS_ATTACK = "judged"  # says nothing that the name of the attack does not say

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job(Generic[T]):
    """A function, its tensors, and how they are cut.

    Attributes:
        function: called with one chunk of each tensor.
        tensors: each (N, ...), all of one length.
        chunk: images per chunk.
        where: name of the experiment, or SHARED.
        stream: name of the stream of random numbers; None: the function draws none.
    """

    function: Callable[..., T]
    tensors: tuple[Tensor, ...]
    chunk: int
    where: str
    stream: str | None

    @property
    def name(self) -> str:
        """What is done, in words: the function's name and the attacks that are bound to it.

        ``deepfool`` for an attack that is only run, ``in own subspace (deepfool)`` for one that a
        function makes use of.
        """
        bound = [part for part in _bound(self.function) if _is_function(part)]
        attacks = ", ".join(dict.fromkeys(map(_words, bound)))
        if attacks and _name(self.function) == _RUNS_ATTACK:
            return attacks
        words = _words(self.function)
        return f"{words} ({attacks})" if attacks else words

    @functools.cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First image of each chunk and the one after its last.

        No images make one empty chunk, so that the result has the right shapes.
        """
        lengths = {len(tensor) for tensor in self.tensors}
        if len(lengths) != 1:
            raise ValueError(f"map takes tensors of one length, not of lengths {sorted(lengths)}")
        count = lengths.pop()
        starts = range(0, max(count, 1), self.chunk)
        return [(start, min(start + self.chunk, count)) for start in starts]


def taken_up(path: Path) -> Chunk | None:
    """A finished chunk from disk; None, with a warning where it is damaged, if there is none."""
    chunk = read(path) if path.exists() else None
    if chunk is None and path.exists():
        _log.warning("%s is damaged: computing it again", path)
    return chunk


def written(path: Path) -> Chunk:
    """A chunk that has just been written.

    Raises:
        RuntimeError: it is not there.
    """
    if (chunk := taken_up(path)) is None:
        raise RuntimeError(
            f"{path} is missing or damaged just after it was written: is the disk shared?"
        )
    return chunk


def _bound(function: Any) -> list[Any]:
    parts: list[Any] = []
    while isinstance(function, functools.partial):
        parts += [*function.args, *function.keywords.values()]
        function = function.func
    return parts


def _is_function(value: Any) -> bool:
    return isinstance(value, functools.partial) or (callable(value) and hasattr(value, "__code__"))


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _words(function: Any) -> str:
    return _name(function).strip("_<>").replace("_", " ")
