"""Options and titles of modules, read from their source, which takes no import of torch."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["Module", "Option"]

KINDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "None": "null",
    "Attack": "attack",
    "Maker": "attack on a set of images",
    "Recipe": "training recipe",
}
"""How a help text calls a type."""


@dataclass(frozen=True)
class Option:
    """A field of a Settings class.

    Attributes:
        name: the name of the field.
        kind: its type, in words.
        default: its default, as a configuration writes it.
        meaning: its description in the class's docstring.
        module: the module of the class that defines it.
    """

    name: str
    kind: str
    default: str
    meaning: str
    module: str


@dataclass(frozen=True)
class Module:
    """The source of a module.

    Attributes:
        root: the folder of the packages.
        name: the dotted name.
        tree: its syntax tree.
    """

    root: Path
    name: str
    tree: ast.Module

    @classmethod
    def read(cls, root: Path, name: str) -> "Module":
        """The module ``name`` of a package below ``root``."""
        path = root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return cls(root, name, ast.parse(file.read_text(encoding="utf-8"), str(file)))

    @property
    def title(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    def constant(self, name: str) -> str:
        """What a name of the module is assigned, in words; empty if it is not assigned."""
        return _words(self._values[name]) if name in self._values else ""

    def options(self, name: str) -> list[Option]:
        """The fields of the dataclass ``name``, those of its bases first."""
        place = self._class(name)
        if place is None:
            return []
        module, node = place
        found: dict[str, Option] = {}
        for base in node.bases:
            inherited = module.options(ast.unparse(base))
            found |= {each.name: each for each in inherited}
        meanings = _attributes(ast.get_docstring(node) or "")
        for entry in _fields(node):
            field = ast.unparse(entry.target)
            meaning = meanings.get(field, found[field].meaning if field in found else "")
            kind, default = _kind(entry.annotation), module._default(entry.value)
            found[field] = Option(field, kind, default, meaning, module.name)
        return list(found.values())

    @cached_property
    def _values(self) -> dict[str, ast.expr]:
        return {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def _class(self, name: str) -> "tuple[Module, ast.ClassDef] | None":
        """The class of that name, and the module that defines it."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self, node
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return Module.read(self.root, node.module)._class(alias.name)
        return None

    def _default(self, value: ast.expr | None) -> str:
        if value is None:
            return "none"
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
            made = next((k.value for k in value.keywords if k.arg == "default_factory"), value)
            if isinstance(made, ast.Lambda):
                return _words(made.body)
            return {"dict": "{}", "list": "[]"}.get(ast.unparse(made), ast.unparse(made))
        if isinstance(value, ast.Name) and value.id in self._values:
            return _words(self._values[value.id])
        return _words(value)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """The statements of a dataclass that define its fields."""
    return [
        entry
        for entry in node.body
        if isinstance(entry, ast.AnnAssign)
        and not ast.unparse(entry.annotation).startswith("ClassVar")
    ]


def _words(value: ast.expr) -> str:
    """An expression as a configuration writes it."""
    if isinstance(value, ast.Constant):
        plain = {"None": "null", "True": "true", "False": "false"}
        return plain.get(repr(value.value), str(value.value))
    if isinstance(value, ast.Tuple | ast.List):
        return f"[{', '.join(map(_words, value.elts))}]"
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "partial":
        options = [f"{each.arg}={_words(each.value)}" for each in value.keywords]
        name = ast.unparse(value.args[0])
        return f"{name} with {', '.join(options)}" if options else name
    return ast.unparse(value).removeprefix("math.")


def _kind(annotation: ast.expr) -> str:
    """A type in words: ``int | None`` is "whole number or null"."""
    if isinstance(annotation, ast.BinOp):
        return f"{_kind(annotation.left)} or {_kind(annotation.right)}"
    if isinstance(annotation, ast.Subscript):
        outer, inner = ast.unparse(annotation.value), annotation.slice
        if outer in ("Mapping", "dict"):
            return "mapping"
        item = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
        return f"list, each a {_kind(item)}"
    text = ast.unparse(annotation)
    return KINDS.get(text, text)


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of the section ``Attributes:`` of a docstring."""
    _, _, section = docstring.partition("Attributes:\n")
    entries: dict[str, str] = {}
    name = ""
    for line in _section(section):
        entry = re.match(r"    (\w+): (.*)", line)
        if entry:
            name = entry[1]
            entries[name] = entry[2]
        elif name:
            entries[name] += " " + line.strip()
    return {name: re.sub(r"\bNone\b", "null", text) for name, text in entries.items()}


def _section(text: str) -> Iterator[str]:
    """The indented lines at the start of a text."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("    "):
            return
        if line.strip():
            yield line
