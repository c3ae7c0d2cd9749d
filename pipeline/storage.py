"""Results as trees of tensors, and as files: one checksummed file per chunk, whole or absent."""

import copy
import functools
import hashlib
import importlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.faults import is_full_disk
from robustness_geometry.checks import Described, InputError, refuse
from robustness_geometry.files import whole

__all__ = [
    "Chunk",
    "check_folder",
    "concatenate",
    "drop_damaged",
    "flatten",
    "move",
    "read",
    "rebuild",
    "refuse_full_disk",
    "write",
]

_DIGEST = 64  # hexadecimal digits of a SHA-256


@dataclass(frozen=True)
class Chunk:
    """A result taken apart.

    Attributes:
        tensors: position -> tensor, on the CPU.
        shape: description, in JSON's types, of what held the tensors.
        seconds: time that the result took to compute.
    """

    tensors: dict[str, Tensor]
    shape: Any
    seconds: float = 0.0

    def rows(self) -> set[int]:
        """The lengths of the first dimension that occur; -1 for a tensor without dimensions."""
        return {len(tensor) if tensor.ndim else -1 for tensor in self.tensors.values()}


def flatten(value: object, seconds: float = 0.0) -> Chunk:
    """Take a result apart into tensors and a description of what held them.

    Args:
        value: a tensor, None, or a dataclass, tuple, list or dict (with string keys) of such.
        seconds: time that the result took to compute.

    Raises:
        TypeError: the value holds something else.
    """
    tensors: dict[str, Tensor] = {}
    return Chunk(tensors, _describe(value, tensors), seconds)


def _describe(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy of its own: the file format refuses tensors that share memory.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return name
    if is_dataclass(value) and not isinstance(value, type):
        owner = type(value)
        parts = {f.name: _describe(getattr(value, f.name), tensors) for f in fields(value)}
        return {
            "kind": "dataclass",
            "name": f"{owner.__module__}:{owner.__qualname__}",
            "parts": parts,
        }
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            "kind": "dict",
            "parts": {key: _describe(part, tensors) for key, part in value.items()},
        }
    if type(value) in (tuple, list):
        parts = {str(index): _describe(part, tensors) for index, part in enumerate(value)}
        return {"kind": type(value).__name__, "parts": parts}
    raise TypeError(
        "a result may hold tensors, None, dataclasses, tuples, lists and dicts, not "
        f"{type(value).__name__}"
    )


def rebuild(chunk: Chunk) -> Any:
    """The result that ``flatten`` took apart."""
    return _rebuild(chunk.tensors, chunk.shape)


def _rebuild(tensors: Mapping[str, Tensor], shape: Any) -> Any:
    if shape is None:
        return None
    if isinstance(shape, str):
        return tensors[shape]
    parts = {name: _rebuild(tensors, part) for name, part in shape["parts"].items()}
    if shape["kind"] == "dict":
        return parts
    if shape["kind"] in ("tuple", "list"):
        return tuple(parts.values()) if shape["kind"] == "tuple" else list(parts.values())
    module, _, name = shape["name"].partition(":")
    owner: Any = importlib.import_module(module)
    for step in name.split("."):
        owner = getattr(owner, step)
    if not (isinstance(owner, type) and is_dataclass(owner)):
        raise TypeError(f"a stored result names {shape['name']}, which is no dataclass")
    return owner(**parts)


def concatenate(chunks: Sequence[Chunk]) -> Chunk:
    """Join consecutive chunks on the first dimension of their tensors; the seconds add up."""
    first = chunks[0]
    if any(chunk.shape != first.shape for chunk in chunks):
        raise ValueError("the chunks hold different kinds of results")
    tensors = {name: torch.cat([chunk.tensors[name] for chunk in chunks]) for name in first.tensors}
    return Chunk(tensors, first.shape, sum(chunk.seconds for chunk in chunks))


def move(value: Any, place: Callable[[Any], Any]) -> Any:
    """``value`` with ``place`` applied to every tensor in partials, dataclasses and containers."""
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, functools.partial):
        keywords = {key: move(part, place) for key, part in value.keywords.items()}
        return functools.partial(
            value.func, *(move(part, place) for part in value.args), **keywords
        )
    if is_dataclass(value) and not isinstance(value, type | torch.nn.Module):
        moved = copy.copy(value)
        for f in fields(value):
            object.__setattr__(moved, f.name, move(getattr(value, f.name), place))
        return moved
    if type(value) in (tuple, list):
        return type(value)(move(part, place) for part in value)
    return {key: move(part, place) for key, part in value.items()} if type(value) is dict else value


def write(path: Path, chunk: Chunk) -> None:
    """Write a chunk, as a whole or not at all.

    The first line is its SHA-256, the rest are safetensors bytes.
    """
    notes = {"shape": json.dumps(chunk.shape), "seconds": repr(chunk.seconds)}
    body = save(chunk.tensors, metadata=notes)
    with whole(path) as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read(path: Path) -> Chunk | None:
    """Read a chunk; None if the file is damaged or cut short.

    Raises:
        FileNotFoundError: there is no such file.
    """
    content = path.read_bytes()
    digest, body = content[:_DIGEST], content[_DIGEST + 1 :]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    header = int.from_bytes(body[:8], "little")  # the safetensors format: length, JSON, data
    notes = json.loads(body[8 : 8 + header])["__metadata__"]
    return Chunk(load(body), json.loads(notes["shape"]), float(notes["seconds"]))


def drop_damaged(folder: Path) -> list[Path]:
    """Remove the checkpoints of unfinished trainings that are damaged, so that these start anew.

    A checkpoint is ``<name>.pt`` with ``<name>.epoch<n>.pt`` beside it; one damaged file, told by
    the checksums of the archive that torch.save wrote, costs all of them.

    Args:
        folder: the folder of the checkpoints, which need not exist.

    Returns:
        The damaged files.
    """
    damaged = [path for path in sorted(folder.glob("*-*.pt")) if not _is_whole_archive(path)]
    for name in {path.name.partition(".")[0] for path in damaged}:
        for path in folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)
    return damaged


def _is_whole_archive(path: Path) -> bool:
    """Whether all checksums of a zip archive are right; True for one that has gone meanwhile."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except FileNotFoundError:
        return True
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError):
        return False


def check_folder(key: str, folder: Path) -> Path:
    """Return ``folder``, made where it is missing, if files can be written in it.

    Args:
        key: name of the setting.
        folder: folder that it gives.

    Raises:
        InputError: it cannot be made, or no file can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        refuse(key, folder, f"a folder that can be written ({error.strerror})")
    return folder


@contextmanager
def refuse_full_disk(folder: Path) -> Iterator[None]:
    """Within it a full disk is an error of one line.

    Args:
        folder: folder that is written to.

    Raises:
        InputError: there is no space left on the disk, or no quota.
    """
    try:
        yield
    except Exception as error:  # MLflow and torch have errors of their own for it
        if isinstance(error, InputError) or not is_full_disk(error):
            raise
        refuse(
            str(folder.resolve()),
            Described("a full disk"),
            "on a disk with free space (delete results or finished chunks that are not needed, "
            "and run again: finished work is taken up)",
        )
