"""Execute the gallery's scripts and write their pages, or check that these are up to date.

``python -m docsite.gallery`` runs every script in docs/gallery/ and writes, beside each, a page
with its code, what it printed, its picture and the seconds it took on one core. With names
(``python -m docsite.gallery nearest path``) it runs those alone. ``--check`` runs nothing: it exits
with 1 and names the pages that were made from another text of their script.
"""

import hashlib
import io
import re
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the check needs neither
    from matplotlib.figure import Figure

__all__ = ["Cell", "Run", "cells", "main", "run", "scripts", "stale", "title"]

GALLERY = Path(__file__).resolve().parent.parent / "docs" / "gallery"

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "font.size": 9.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}

DPI = 110
INDEX = "index.md"
CELL = re.compile(r"^# %%(?: \[(markdown)\])?$", flags=re.MULTILINE)
MARK = re.compile(r"<!-- made by `make gallery` from (\S+), sha256 (\w+) -->")


@dataclass(frozen=True)
class Cell:
    """One cell of a script in jupytext's percent format: Markdown text, or Python code."""

    text: str
    markdown: bool


@dataclass(frozen=True)
class Run:
    """What a script gave.

    Attributes:
        printed: what each cell printed; empty for Markdown.
        figure: the picture.
        seconds: processor time, on one core.
    """

    printed: tuple[str, ...]
    figure: "Figure"
    seconds: float


def scripts(folder: Path = GALLERY) -> list[Path]:
    """The gallery's scripts, in the order of their names."""
    return sorted(folder.glob("*.py"))


def cells(text: str) -> list[Cell]:
    r"""The cells of a script in the percent format.

    Example:
        >>> cells("# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nprint(1)\n")
        [Cell(text='# Title\n\nWords.', markdown=True), Cell(text='print(1)', markdown=False)]
    """
    _, *parts = CELL.split(text)
    found = []
    for kind, part in zip(parts[::2], parts[1::2], strict=True):
        body = re.sub(r"^# ?", "", part, flags=re.MULTILINE) if kind else part
        found.append(Cell(body.strip(), bool(kind)))
    return found


def title(script: Path) -> str:
    """The heading of a script."""
    return cells(script.read_text("utf-8"))[0].text.split("\n")[0].removeprefix("# ")


def run(script: Path) -> Run:
    """Execute a script, cell by cell in one namespace, on one thread.

    Raises:
        ValueError: the script does not draw exactly one figure.
    """
    import matplotlib as mpl
    import torch

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # after the choice of the backend

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plt.close("all")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    start = time.process_time()
    try:
        with plt.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
            warnings.filterwarnings("ignore", message="__array__ implementation")  # torch's
            for cell in cells(script.read_text("utf-8")):
                shown = io.StringIO()
                if not cell.markdown:
                    with redirect_stdout(shown):
                        exec(compile(cell.text, str(script), "exec"), namespace)
                printed.append(shown.getvalue().rstrip())
        seconds = time.process_time() - start
        if len(plt.get_fignums()) != 1:
            raise ValueError(f"{script.name} draws {len(plt.get_fignums())} figures, not one")
        return Run(tuple(printed), plt.gcf(), seconds)
    finally:
        torch.set_num_threads(threads)
        plt.close("all")


def page(script: Path, found: Run) -> str:
    """The Markdown page of a script that was run."""
    text = script.read_text("utf-8")
    blocks = [f"<!-- made by `make gallery` from {script.name}, sha256 {_digest(text)} -->"]
    parts = cells(text)
    for index, (cell, printed) in enumerate(zip(parts, found.printed, strict=True)):
        blocks.append(cell.text if cell.markdown else f"```python\n{cell.text}\n```")
        if printed:
            blocks.append(f"Output:\n\n```text\n{printed}\n```")
        if index == 0:
            blocks.append(f"![The picture that this example draws]({script.stem}.png)")
    blocks.append(f"*{found.seconds:.1f} seconds on one core.* [Script]({script.name})")
    return "\n\n".join(blocks) + "\n"


def index(folder: Path) -> str:
    """The page that shows all pictures."""
    lines = [
        "# Gallery",
        "",
        "Each example is one script that runs alone in seconds, on networks and digits that come"
        " with the library. `make gallery` runs them all and writes these pages.",
        "",
    ]
    for script in scripts(folder):
        name = title(script)
        lines += [
            f"## [{name}]({script.stem}.md)",
            "",
            f"[![{name}]({script.stem}.png)]({script.stem}.md)",
            "",
        ]
    return "\n".join(lines)


def stale(folder: Path = GALLERY) -> list[str]:
    """Names of the files that are missing, left over, or made from another text of their script."""
    wrong = []
    for script in scripts(folder):
        path = script.with_suffix(".md")
        mark = MARK.search(path.read_text("utf-8")) if path.exists() else None
        if mark is None or mark.groups() != (script.name, _digest(script.read_text("utf-8"))):
            wrong.append(path.name)
        if not script.with_suffix(".png").exists():
            wrong.append(script.with_suffix(".png").name)
    known = {script.stem for script in scripts(folder)}
    made = [path for end in ("md", "png") for path in sorted(folder.glob(f"*.{end}"))]
    wrong += [path.name for path in made if path.stem not in known and path.name != INDEX]
    first = folder / INDEX
    if not first.exists() or first.read_text("utf-8") != index(folder):
        wrong.append(INDEX)
    return wrong


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(arguments: Sequence[str]) -> int:
    """Run the scripts, or check their pages; returns the exit code."""
    if list(arguments) == ["--check"]:
        for name in stale():
            print(f"docs/gallery/{name} is out of date: run make gallery", file=sys.stderr)
        return 1 if stale() else 0
    known = {script.stem: script for script in scripts()}
    unknown = [name for name in arguments if name not in known]
    if unknown:
        print(f"names must be of {', '.join(known)}; got {unknown[0]!r}", file=sys.stderr)
        return 2
    for name in arguments or known:
        script = known[name]
        found = run(script)
        picture = script.with_suffix(".png")
        found.figure.savefig(picture, dpi=DPI, metadata={"Software": None})
        script.with_suffix(".md").write_text(page(script, found), encoding="utf-8")
        print(f"{name}: {found.seconds:.1f} s")
    (GALLERY / INDEX).write_text(index(GALLERY), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
