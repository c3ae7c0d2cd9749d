"""What the pages include is there, and the card's page names every field."""

import json
import re

import pytest

from docsite.hooks import INCLUDE, card_fields, section


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
