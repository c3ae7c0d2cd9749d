"""What the templates of all pages are given."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report.text import label
from pipeline.report.words import NEGATIVE, VERDICTS, word

__all__ = ["BRAND", "environment", "style"]

HERE = Path(__file__).parent
BRAND = '<a class="brand" href="#top">robustness-geometry</a>'
"""What tells a page of this project from others."""

SYMBOLS = dict(zip(VERDICTS, ("✓", "✓", "≈", "✕", "✕", "=", "–"), strict=True))
CLASSES = dict(
    zip(
        VERDICTS,
        ("reproduced", "carries", "undecided", "fails", "contradicted", "arithmetic", "untested"),
        strict=True,
    )
)


def environment() -> Environment:
    """The templates of this folder, with the words, symbols and colours of verdicts."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        VERDICTS=VERDICTS,
        SYMBOLS=SYMBOLS,
        CLASSES=CLASSES,
        NEGATIVE=NEGATIVE,
        GROUNDS={
            "theorem": "theorem",
            "own": "own ground",
            "kin": "kindred ground",
            "far": "far ground",
        },
        label=label,
        word=word,
    )
    return made


def style() -> str:
    """The pages' style sheet."""
    return (HERE / "style.css").read_text(encoding="utf-8")
