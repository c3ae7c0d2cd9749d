"""What the pages include is there, and the card's page names every field."""

import importlib
import inspect
import json
import re

import pytest

from docsite.hooks import INCLUDE, REFERENCE, card_fields, public, section


def test_every_included_section_exists(root):
    found = [
        each for page in (root / "docs").rglob("*.md") for each in INCLUDE.findall(page.read_text())
    ]
    assert len(found) >= 4
    for name, heading in found:
        assert len(section((root / name).read_text(), heading)) > 200


def test_a_section_ends_at_the_next_heading_of_its_level():
    text = "## A\n\none\n\n### B\n\ntwo\n\n## C\n\nthree\n"
    assert section(text, "A") == "one\n\n### B\n\ntwo"
    assert section(text, "B") == "two"
    with pytest.raises(ValueError, match="no heading 'D'"):
        section(text, "D")


def test_the_page_of_the_card_names_every_number(root):
    schema = json.loads((root / "docs" / "card.schema.json").read_text())
    named = re.findall(r"^\| `(\w+)` \|", card_fields(schema), flags=re.MULTILINE)
    assert named == list(schema["properties"]["numbers"]["properties"])


def test_every_page_that_the_navigation_names_exists(root):
    named = re.findall(r"([\w/]+\.md)$", (root / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    there = {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    assert set(named) == there


def test_the_reference_finds_every_public_class_and_function(root):
    pages = (root / "docs" / "reference").glob("*.md")
    named = [each for page in pages for each in REFERENCE.findall(page.read_text())]
    assert len(named) >= 8
    for name in named:
        module = importlib.import_module(name)
        docstring, found = public(name)
        assert docstring == module.__doc__.strip()
        for each in module.__all__:
            value = getattr(module, each)
            own = str(getattr(value, "__module__", "")).startswith("robustness_geometry")
            if own and (inspect.isclass(value) or inspect.isfunction(value)):
                place, _, last = found[each].rpartition(".")
                assert getattr(importlib.import_module(place), last) is value
