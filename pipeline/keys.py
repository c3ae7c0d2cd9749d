"""Fingerprints of functions, their arguments and their source: equal keys mean equal results."""

import ast
import enum
import functools
import hashlib
import importlib.util
import pickle
import re
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Fingerprint", "Sources"]

PACKAGES = ("robustness_geometry", "pipeline", "stages")
"""The packages whose source enters a key, together with the user's own modules."""

_PLUMBING = {
    f"pipeline.{name}"
    for name in (
        "crew",
        "database",
        "devices",
        "executor",
        "faults",
        "jobs",
        "keys",
        "processes",
        "progress",
        "runs",
        "servers",
        "storage",
        "tracking",
    )
}
"""Modules that decide where and how work runs, but not what it yields."""

_VERSIONED = {"torch", "numpy", "builtins", "math", "operator", "_operator", "functools"}
"""Packages whose source need not enter a key: it holds torch's version, the others are stable."""

_PLAIN = (bool, int, float, complex, str, bytes, range, torch.dtype)
_TORCH_FIELDS = set(vars(nn.Module())) - {"training"}


def _digest(kind: str, *parts: bytes) -> bytes:
    sha = hashlib.sha256()
    for part in (kind.encode(), *parts):
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.digest()


def _tensor(tensor: Tensor) -> bytes:
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.digest()


class Fingerprint:
    """Digests of values; ``modules`` collects the Python modules whose source they depend on."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self._open: list[int] = []

    def of(self, value: object, where: str = "value") -> bytes:
        """The SHA-256 of ``value``, equal in every process.

        Args:
            value: a tensor, nn.Module, number, string, dtype, device, enum, module-level function
                or class, functools.partial, or a dataclass, tuple, list, set or mapping of such.
            where: name of the value in errors.

        Raises:
            TypeError: the value has no fingerprint (a lambda, a closure, a path, an open file ...).
        """
        if id(value) in self._open and isinstance(value, nn.Module | Mapping | Sequence):
            return _digest("cycle")
        self._open.append(id(value))
        try:
            return self._of(value, where)
        finally:
            self._open.pop()

    def _of(self, value: object, where: str) -> bytes:
        if value is None or isinstance(value, _PLAIN):
            return _digest(type(value).__name__, repr(value).encode())
        if isinstance(value, Tensor):
            return _digest("tensor", _tensor(value))
        if isinstance(value, np.ndarray | np.generic):
            return _digest("array", _tensor(torch.from_numpy(np.asarray(value).copy())))
        if isinstance(value, torch.device):
            # Which of several equal devices it is does not matter.
            return _digest("device", value.type.encode())
        if isinstance(value, nn.Module):
            return self._module(value, where)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, dict(sorted(value.keywords.items())))
            return _digest("partial", *(self.of(part, where) for part in parts))
        if isinstance(value, enum.Enum):
            return _digest("enum", self.of(type(value), where), value.name.encode())
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            return self._named(value, where)
        return self._container(value, where)

    def _container(self, value: object, where: str) -> bytes:
        if is_dataclass(value):
            parts = [self.of(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)]
            return _digest("dataclass", self.of(type(value), where), *parts)
        if isinstance(value, Mapping):
            parts = [self.of(pair, f"{where}[{pair[0]!r}]") for pair in value.items()]
            return _digest("mapping", *parts)
        if isinstance(value, Sequence):
            return _digest(
                "sequence", *(self.of(part, f"{where}[{i}]") for i, part in enumerate(value))
            )
        if isinstance(value, set | frozenset):
            return _digest("set", *sorted(self.of(part, where) for part in value))
        raise TypeError(
            f"{where}: {type(value).__name__} has no fingerprint; bind tensors, networks, numbers, "
            "strings, dataclasses or functions of a module instead"
        )

    def _named(
        self, value: type | types.FunctionType | types.BuiltinFunctionType, where: str
    ) -> bytes:
        name = value.__qualname__
        if "<" in name:
            raise TypeError(
                f"{where}: {name} is a lambda or a local definition and has no fingerprint; "
                "define it at the top of a module and bind its data with functools.partial"
            )
        self.modules.add(value.__module__ or "builtins")
        return _digest("name", f"{value.__module__}:{name}".encode())

    def _module(self, model: nn.Module, where: str) -> bytes:
        parts = []
        for name, layer in model.named_modules(remove_duplicate=False):
            parts.append(_digest(name, self._layer(layer, f"{where}.{name}" if name else where)))
        for tensors in (model.named_parameters, model.named_buffers):
            parts.extend(
                _digest(name, _tensor(tensor)) for name, tensor in tensors(remove_duplicate=False)
            )
        return _digest("network", *parts)

    def _layer(self, layer: nn.Module, where: str) -> bytes:
        """The class of one layer, its plain attributes and its hooks."""
        owner = type(layer)
        for base in owner.__mro__[:-1]:
            self.modules.add(base.__module__)
        attributes = _attributes(layer)
        hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
        parts = [_digest(k, self._held(v, f"{where}.{k}")) for k, v in sorted(attributes.items())]
        parts.extend(_digest("hook", self._held(hook, f"{where} hook")) for hook in hooks)
        name = f"{owner.__module__}:{owner.__qualname__} {layer.extra_repr()}"
        return _digest("layer", name.encode(), *parts)

    def _held(self, value: object, where: str) -> bytes:
        """An attribute of a layer: a user's network may hold lambdas and objects of any class."""
        try:
            return self.of(value, where)
        except TypeError:
            if isinstance(value, types.FunctionType):
                self.modules.add(value.__module__)
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
                held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
                return _digest(
                    "code", _code(value.__code__), *(self._held(part, where) for part in held)
                )
            try:
                return _digest("pickle", pickle.dumps(value, protocol=4))
            except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
                raise TypeError(
                    f"{where}: {type(value).__name__} has no fingerprint; let the layer hold "
                    "tensors, numbers, strings or functions of a module"
                ) from None


def _attributes(layer: nn.Module) -> dict[str, object]:
    """What a layer holds beside weights, buffers and layers.

    For a program that was scripted, traced or exported this is its code, with its constants.
    """
    if isinstance(layer, torch.jit.ScriptModule):
        if not hasattr(layer, "forward"):
            return {}
        code, constants = layer.code_with_constants
        return {"code": re.sub(r"___torch_mangle_\d+\.", "", code), **constants.const_mapping}
    own = {name: value for name, value in vars(layer).items() if name not in _TORCH_FIELDS}
    if isinstance(layer, torch.fx.GraphModule):
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        return {"code": layer.code, **tensors}
    if type(layer).__name__ in ("GuardsFn", "OptimizedModule"):  # what checks or compiles a network
        return {}
    return own


def _code(code: types.CodeType) -> bytes:
    consts = [
        _code(c) if isinstance(c, types.CodeType) else repr(c).encode() for c in code.co_consts
    ]
    return _digest("code", code.co_code, repr(code.co_names).encode(), *consts)


class Sources:
    """The project's source when this was made: an edit during a run counts in the next one."""

    def __init__(self, packages: tuple[str, ...] | None = None) -> None:
        self._trees: dict[str, ast.Module] = {}
        self._text: dict[str, bytes] = {}
        self._packages: set[str] = set()
        self._asked: set[str] = set()
        self._closures: dict[str, set[str]] = {}
        self._digests: dict[str, bytes] = {}
        for package in PACKAGES if packages is None else packages:
            self._adopt(package)

    def digest(self, modules: Iterable[str]) -> bytes:
        """The SHA-256 of the source that ``modules`` depend on.

        This is their own and that of all local modules that they import, directly or not, without
        comments, docstrings and layout. Where a package's ``__init__`` only passes a name on, the
        module that defines the name counts and its neighbours do not.

        Raises:
            TypeError: a module has no source file.
        """
        parts = {}
        for module in modules:
            if module.partition(".")[0] in _VERSIONED:
                continue
            if not self._knows(module):
                parts[module] = hashlib.sha256(_file(module).read_bytes()).digest()
                continue
            for name in self.closure(module):
                if name not in self._digests:
                    self._digests[name] = hashlib.sha256(_code_of(self._text[name])).digest()
                parts[name] = self._digests[name]
        return _digest("source", *(_digest(name, part) for name, part in sorted(parts.items())))

    def closure(self, module: str) -> set[str]:
        """The names of ``module`` and of all local modules that it imports, directly or not."""
        if module in self._closures:
            return self._closures[module]
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name in seen or name in _PLUMBING:
                continue
            seen.add(name)
            for origin, wanted in self._imports(name):
                waiting.extend(self._resolve(origin, wanted))
        self._closures[module] = seen
        return seen

    def _imports(self, module: str) -> Iterable[tuple[str, str | None]]:
        """Every import of ``module`` as (module, name taken from it; None for the whole)."""
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(module, node)
                yield from ((origin, alias.name) for alias in node.names)

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        up = node.level - (module in self._packages)
        base = module.split(".")[: len(module.split(".")) - up]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _resolve(self, origin: str, name: str | None, depth: int = 0) -> list[str]:
        """The local modules that ``from origin import name`` depends on."""
        if not self._knows(origin):
            return []
        if name is None or name == "*" or origin not in self._packages or depth > 20:
            return [origin]
        found = [f"{origin}.{name}"] if self._knows(f"{origin}.{name}") else []
        body = self._tree(origin).body
        for node in body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        found.extend(
                            self._resolve(self._origin(origin, node), alias.name, depth + 1)
                        )
        return found or [origin]

    def _tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            self._trees[module] = ast.parse(self._text[module])
        return self._trees[module]

    def _knows(self, module: str) -> bool:
        top = module.partition(".")[0]
        if top not in self._asked and module not in self._text:
            self._asked.add(top)
            if _is_local(top):
                self._adopt(top)
        if module not in self._text and module in sys.modules and _is_local(module):
            # A script, or a test module outside any package.
            self._text[module] = _file(module).read_bytes()
        return module in self._text

    def _adopt(self, top: str) -> None:
        """Read every source file of a package, or the one file of a module."""
        self._asked.add(top)
        spec = None if top == "__main__" else importlib.util.find_spec(top)
        if spec is None:
            return
        for folder in map(Path, spec.submodule_search_locations or ()):
            for path in sorted(folder.rglob("*.py")):
                parts = [top, *path.relative_to(folder).with_suffix("").parts]
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                self._text[name] = path.read_bytes()
                if parts[-1] == "__init__":
                    self._packages.add(name)
        if spec.origin and spec.origin.endswith(".py") and not spec.submodule_search_locations:
            self._text[top] = Path(spec.origin).read_bytes()


def _code_of(text: bytes) -> bytes:
    """The code of a module without its docstrings."""
    tree = ast.parse(text)  # anew: a copy of a tree that is at hand takes ten times as long
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_local(module: str) -> bool:
    """Whether a module is the user's own source: neither installed nor part of Python."""
    if module in sys.modules:
        origin = getattr(sys.modules[module], "__file__", None)
    else:
        spec = importlib.util.find_spec(module)
        origin = spec.origin if spec else None
    if origin is None or not origin.endswith(".py"):
        return False
    path = Path(origin).resolve()
    return not ({"site-packages", "dist-packages"} & set(path.parts)) and not path.is_relative_to(
        Path(sysconfig.get_paths()["stdlib"]).resolve()
    )


def _file(module: str) -> Path:
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is None:
        raise TypeError(f"{module} has no source file: define functions and networks in a module")
    return Path(origin)
