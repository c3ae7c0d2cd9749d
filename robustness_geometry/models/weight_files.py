"""What a file of weights holds, told by its content and read without running any of its code."""

import json
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from robustness_geometry.checks import refuse

__all__ = ["KEY", "StandIn", "read_weights", "short"]

KEY = "model.checkpoint"
WANTED = "a file of weights alone: safetensors, or a saved state dict"
RESAVE = "load it where its code is, then torch.save(network.state_dict(), file)"
HEAD = 512
"""Bytes at the start of a file by which it is recognised."""

STARTS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer: `git lfs pull` fetches the file that it names",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes: convert it to a PyTorch state dict"),
    (b"GGUF", "a GGUF file of quantised weights"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"<", "a web page, so its download failed"),
)


class StandIn:
    """Takes the place of every class and function that a file names, and does nothing."""

    origin = ""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Drop what the object held."""


def read_weights(path: Path) -> object:
    """What ``path`` holds: a state dict, or a checkpoint with one.

    The file is recognised by its content, whatever its name. Nothing that it names is imported or
    called: beside tensors and plain values it yields empty :class:`StandIn` objects.

    Args:
        path: an existing file.

    Raises:
        InputError: a file that is damaged, or of another kind, which the text names.

    Example:
        >>> from pathlib import Path
        >>> from robustness_geometry.models.pretrained import WEIGHTS
        >>> from robustness_geometry.models.weight_files import read_weights
        >>> sorted(read_weights(WEIGHTS / "mnist5k_lenet.safetensors"))[0]
        'network.conv1.bias'
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        refuse(KEY, path, "a whole file of weights (this one is empty)")
    if head[5:9] == b"\0\0\0{":  # the length of the header, then its JSON
        return _safetensors(path)
    if head.lstrip()[:1] == b"{":
        return _shards(path)
    if head.startswith(b"PK"):
        _check_archive(path)
    elif found := _other_kind(head):
        refuse(KEY, path, f"{WANTED}; this is {found}")
    elif path.suffix == ".safetensors" and not head.startswith(b"\x80"):
        return _safetensors(path)  # which says what is wrong with it
    return _saved_by_torch(path)


def short(error: BaseException) -> str:
    """The first line of an error's text, at most 160 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _other_kind(head: bytes) -> str:
    for start, what in STARTS:
        if head.lstrip().startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    if head[:1] == b"\x08" and any(word in head for word in (b"onnx", b"pytorch", b"ai.")):
        return "an ONNX file, whose weights no longer carry the network's names"
    if b"saved_model" in head or b"model_checkpoint_path" in head:
        return "a TensorFlow file: convert it to a PyTorch state dict"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"a text: {head[:40].decode('ascii').split(chr(10))[0]!r}"
    return ""


def _safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        refuse(KEY, path, f"a whole file of weights ({short(error)})")


def _shards(path: Path) -> object:
    """The weights of all files that an index names, as large models are published."""
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        refuse(KEY, path, f"{WANTED}; this is a JSON text that is no index of weight files")
    state: dict[str, object] = {}
    for name in sorted(map(str, names)):
        part = path.parent / Path(name).name
        if not part.is_file():
            refuse(KEY, path, f"an index whose files lie beside it; {part.name} is missing")
        loaded = read_weights(part)
        state.update(loaded if isinstance(loaded, Mapping) else {})
    return state


def _check_archive(path: Path) -> None:
    """Refuse a zip archive in which torch.save wrote no weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        refuse(KEY, path, f"a whole file of weights ({short(error)})")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        found = "a TorchScript archive: torch.jit.load it, and save its state_dict()"
    elif any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return
    elif any(name.endswith(".h5") for name in names):
        found = "a Keras file: convert it to a PyTorch state dict"
    elif any("models/" in name or "archive_format" in name for name in names):
        found = "an exported program: save the state_dict() of the network"
    elif any(name.endswith(".npy") for name in names):
        found = "a file of NumPy arrays"
    else:
        inside = f" with {names[0]} in it" if names else ""
        found = f"a zip archive{inside}: unpack it first"
    refuse(KEY, path, f"{WANTED}; this is {found}")


def _saved_by_torch(path: Path) -> object:
    try:
        names = _named(path)
        stand_ins = [(_stand_in(name), name) for name in names]
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(stand_ins),  # type: ignore[arg-type]
            path.open("rb") as file,  # as torch goes by a path's suffix
        ):
            warnings.simplefilter("ignore")  # what torch finds odd either loads or is refused
            loaded: object = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(word in str(error) for word in ("GLOBAL", "Can only", "reduce")):
            refuse(KEY, path, f"{WANTED}; this is pickled code: {RESAVE}")
        refuse(KEY, path, f"a whole file of weights ({short(error)})")
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        AssertionError,
        MemoryError,
        OverflowError,
    ) as error:
        refuse(KEY, path, f"a whole file of weights ({short(error)})")
    if isinstance(loaded, StandIn):
        refuse(KEY, path, f"{WANTED}; this is a pickled {loaded.origin}: {RESAVE}")
    return loaded


def _named(path: Path) -> list[str]:
    """The classes and functions that a file of torch.save names and torch does not know as safe."""
    if zipfile.is_zipfile(path):
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    names = set()
    with path.open("rb") as file:
        for _ in range(4):  # the older format: a number, a version, the machine, the content
            for code, argument, _ in pickletools.genops(file):
                if code.name == "GLOBAL":
                    names.add(str(argument).replace(" ", ".").replace("__builtin__", "builtins"))
    return sorted(names)


def _stand_in(name: str) -> object:
    if name == "collections.defaultdict":
        return _plain
    return type("StandIn", (StandIn,), {"origin": name})


def _plain(*_: object) -> dict[object, object]:
    return {}
