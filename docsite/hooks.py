"""What mkdocs does beside its plugins: included sections, reference, fields, notebooks."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from docsite.docstrings import as_markdown

__all__ = ["card_fields", "on_files", "on_page_markdown", "public", "reference", "section"]

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^<!-- include (\S+) "([^"]+)" -->$', flags=re.MULTILINE)
REFERENCE = re.compile(r"^<!-- reference (\S+) -->$", flags=re.MULTILINE)
FIELDS = "<!-- the fields of card.schema.json -->"


def section(text: str, heading: str) -> str:
    r"""The text below a heading of a Markdown file, up to the next heading of its level.

    Raises:
        ValueError: there is no such heading.

    Example:
        >>> section("# A\n\n## B\n\nWords.\n\n## C\n", "B")
        'Words.'
    """
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"no heading {heading!r}")
    after = re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.M)
    return after[0].strip()


def public(module: str) -> tuple[str, dict[str, str]]:
    """The docstring of a module, and where its public classes and functions are defined.

    A package's names are often those of its files too, which hides the functions from tools that
    read the package: here each is looked up where it is written.

    Args:
        module: dotted name of a module or package of the library.

    Returns:
        The docstring, and name -> dotted path of its definition, in the order of ``__all__``.

    Example:
        >>> public("robustness_geometry.certify")[1]["exact_distance"]
        'robustness_geometry.certify.exact.exact_distance'
    """
    place = ROOT.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(path.read_text("utf-8"))
    found: dict[str, str] = {}
    exported: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = f"{module}.{node.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    return ast.get_docstring(tree) or "", {n: found[n] for n in exported if n in found}


def reference(module: str) -> str:
    """The directives that mkdocstrings turns into the reference of a module."""
    docstring, names = public(module)
    blocks = [as_markdown(docstring)]
    for name, path in names.items():
        # The short name is an anchor too, as docstrings refer to it.
        anchor = f"[](){{#{module}.{name}}}\n\n" if path != f"{module}.{name}" else ""
        blocks.append(f"{anchor}::: {path}")
    return "\n\n".join(blocks)


def card_fields(schema: dict[str, Any]) -> str:
    """The numbers of a geometry card and their meaning, as a table."""
    numbers = schema["properties"]["numbers"]["properties"]
    rows = [f"| `{name}` | {_escaped(field['description'])} |" for name, field in numbers.items()]
    return "\n".join(["| field | meaning (experiment: its number) |", "| --- | --- |", *rows])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Fill in what a page includes, and offer an example's notebook."""

    def included(found: "re.Match[str]") -> str:
        return section((ROOT / found[1]).read_text("utf-8"), found[2])

    text = INCLUDE.sub(included, markdown)
    text = REFERENCE.sub(lambda found: reference(found[1]), text)
    if FIELDS in text:
        schema = json.loads((ROOT / "docs" / "card.schema.json").read_text("utf-8"))
        text = text.replace(FIELDS, card_fields(schema))
    source = Path(page.file.src_uri)
    if source.parent.name == "gallery" and source.stem != "index":
        text += f"[Notebook]({source.stem}.ipynb)\n"
    return text


def on_files(files: Any, config: Any, **kwargs: Any) -> Any:
    """Add a notebook for each example."""
    import jupytext
    from mkdocs.structure.files import File

    for script in sorted((ROOT / "docs" / "gallery").glob("*.py")):
        notebook = jupytext.read(script)
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"{script.stem}-{number}"  # the same in every build
        made = jupytext.writes(notebook, fmt="ipynb")
        files.append(File.generated(config, f"gallery/{script.stem}.ipynb", content=made))
    return files
