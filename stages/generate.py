"""Write what can be derived from the experiments, or check that it is up to date.

``python -m stages.generate`` writes conf/defaults.yaml, conf/experiment/, dvc.yaml, the schema of
the card and the tables of README.md; ``--check`` exits with 1 and names the files that differ.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from pipeline.card import schema
from pipeline.report.overall import overall, readme, suites, written
from stages.graph import graph
from stages.names import ACROSS, STAGES
from stages.options import Option, block, modules, own_options, shared_options

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
MADE = "written by `make params` from the files in stages/ and pipeline/studies/"
MARKS = ("<!-- the thesis' tables and figures: written by `make params` -->", "<!-- end -->")
HOLDS = "<!-- what holds: written by `make params` from the results -->"

ALGORITHMS = {
    "Algorithms 1 and 2; Section 3.4.1, Algorithm 3": (
        "robustness_geometry/attacks/deepfool.py",
        "attacks.deepfool(model, images, norm=..., subspace=...)",
    ),
    "Section 4.2, Algorithm 4": (
        "robustness_geometry/attacks/universal.py",
        "attacks.universal_perturbation(model, images, norm=..., radius=...)",
    ),
    "Section 7.3, Algorithm 5": (
        "robustness_geometry/geometry/paths.py",
        "geometry.find_path(model, start, end)",
    ),
    "Section 7.5, Algorithm 6 (score)": (
        "robustness_geometry/detection.py",
        "detection.curvature_score(model, images, h=...)",
    ),
    "Section 8.4 (penalty)": (
        "robustness_geometry/training/cure.py",
        "training.cure_penalty(model, images, labels, h=...)",
    ),
}
"""Where the thesis states an algorithm -> its file and its call."""


def main(arguments: Sequence[str]) -> int:
    """Write or check the generated files; returns the exit code."""
    files = {ROOT / name: text for name, text in generated().items()}
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    kept = set(files)
    gone = [path for path in (ROOT / "conf" / "experiment").glob("*.yaml") if path not in kept]
    if list(arguments) == ["--check"]:
        for path in (*stale, *gone):
            print(f"{path.relative_to(ROOT)} is out of date: run make params", file=sys.stderr)
        return 1 if stale or gone else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


def generated() -> dict[str, str]:
    """Name of each generated file -> its text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    standings, names = overall(ROOT), [suite.name for suite in suites(ROOT)]
    text = _between(text, HOLDS, readme(standings, names))
    return {
        "conf/defaults.yaml": defaults(),
        "dvc.yaml": graph(ROOT),
        "README.md": _between(text, MARKS[0], table()),
        "docs/card.schema.json": json.dumps(schema(), indent=1) + "\n",
        "results/verdicts.json": written(standings, names),
        **presets(),
    }


def _between(text: str, mark: str, part: str) -> str:
    """A text with a part of it, from a mark to the next end, written anew."""
    before, rest = text.split(mark)
    return f"{before}{mark}\n{part}{MARKS[1]}{rest.split(MARKS[1], 1)[1]}"


def defaults() -> str:
    """Every option with its default and its meaning, as a configuration file."""
    lines = [f"# Every option, its default and its meaning: {MADE}."]
    for stage in STAGES:
        if stage != "attack":  # its block is the attack under study, from the attack group
            lines += _block(stage, list(block(stage).values()), 0)
    lines += ["", "settings:"]
    for stage in (*STAGES, *ACROSS):
        shared = block(stage)
        for name, module in modules(stage).items():
            own = own_options(module, shared)
            lines += ["", f"  # {module.SECTION}", *_block(name, own, 2)[1:]]
            named = {option.name for option in own}
            common = [each for each in shared_options(module) if each not in named]
            if common and not own:
                lines[-1] = lines[-1].removesuffix(" {}")
            lines += [f"    {each}: ${{{stage}.{each}}}" for each in common]
    return "\n".join(lines) + "\n"


def _block(name: str, options: Sequence[Option], indent: int) -> list[str]:
    """A block of options, each below its meaning."""
    space = " " * (indent + 2)
    lines = ["", f"{' ' * indent}{name}:" if options else f"{' ' * indent}{name}: {{}}"]
    for option in options:
        meaning = option.meaning.replace("``", "`")
        lines += wrap(meaning, 100, initial_indent=f"{space}# ", subsequent_indent=f"{space}# ")
        lines.append(f"{space}{option.name}: {_flow(option.default)}")
    return lines


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n...\n").strip()


def presets() -> dict[str, str]:
    """A preset for each table, figure and theorem: the experiments that make it."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for stage in (*STAGES[1:], *ACROSS):
        for name, module in modules(stage).items():
            for item in _items(module.SECTION):
                chosen.setdefault((item, stage), []).append(name)
    files = {}
    for (item, stage), names in chosen.items():
        shown = item.replace("_", " ", 1).replace("_", ".").capitalize()
        lines = [
            "# @package _global_",
            f"# {shown}, {MADE}.",
            f"#   python -m stages.{stage} experiment={item}",
            f"experiments: [{', '.join(names)}]",
        ]
        files[f"conf/experiment/{item}.yaml"] = "\n".join(lines) + "\n"
    return files


def _items(section: str) -> list[str]:
    """The tables, figures and theorems that a SECTION names, or else its sections."""
    found = []
    for kind in ("Table", "Figure", "Theorem", "Observation", "Remark"):
        for numbers in re.findall(rf"{kind}s? ((?:\d[\d.]*[a-z]?(?:, | and )?)+)", section):
            found += [
                f"{kind.lower()}_{n.replace('.', '_')}"
                for n in re.findall(r"\d+(?:\.\d+)?", numbers)
            ]
    if not found:
        numbers = re.match(r"Sections? ((?:[\d.]+(?:, | and )?)+)", section)
        sections = re.findall(r"\d+\.\d+", numbers[1]) if numbers else []
        found = [f"section_{number.replace('.', '_')}" for number in dict.fromkeys(sections)]
    return found


def table() -> str:
    """Where the thesis' tables, figures and algorithms are: one row each, in the thesis' order."""
    rows = list(_rows())
    rows.sort(key=lambda row: [int(n) for n in re.findall(r"\d+", row[0].split(",")[0])[:3]])
    lines = ["| Thesis | File | Command |", "| --- | --- | --- |"]
    return (
        "\n".join([*lines, *(f"| {where} | `{file}` | `{call}` |" for where, file, call in rows)])
        + "\n"
    )


def _rows() -> Iterator[tuple[str, str, str]]:
    for where, (file, call) in ALGORITHMS.items():
        yield where, file, call
    for stage in (*STAGES, *ACROSS):
        for module in modules(stage).values():
            items = _items(module.SECTION)
            chosen = f" experiment={items[0]}" if items and stage != STAGES[0] else ""
            file = f"{module.__name__.replace('.', '/')}.py"
            yield module.SECTION, file, f"python -m stages.{stage}{chosen}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
