"""What mkdocs does beside its plugins: included sections, fields of the card, notebooks."""

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["card_fields", "on_files", "on_page_markdown", "section"]

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^<!-- include (\S+) "([^"]+)" -->$', flags=re.MULTILINE)
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
