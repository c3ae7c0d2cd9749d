"""Names that people give to their classes are text in figures and tables, whatever they hold."""

import io
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
import torch

from pipeline.pictures import Panel, image_grid
from pipeline.plots import LONGEST, axes_grid, literal, styled
from pipeline.studies.regions import draw_regions
from pipeline.tables import class_name, class_text
from robustness_geometry.types import Dataset, Split

ODD = {
    "$5_and $6$ x_1^2": "$5_and $6$ x_1^2",
    "_hidden": "_hidden",
    "=1+2": "=1+2",
    "@SUM(A1:A9), \"q\"; 'p'": "@SUM(A1:A9), \"q\"; 'p'",
    "<b>&amp;</b>": "<b>&amp;</b>",
    "back\\slash$": "back\\slash$",
    "\\$ \\frac{1}": "\\$ \\frac{1}",
    "two\nlines": "two lines",
    "Äpfel кошка": "Äpfel кошка",
    "{0} %s": "{0} %s",
    "n" * 99: "n" * (LONGEST - 1) + "…",
    "猫": "class 11",
}


def dataset():
    split = Split(torch.rand(len(ODD), 1, 4, 4), torch.arange(len(ODD)))
    return Dataset("odd", split, split, tuple(ODD), (0.5,), (0.2,))


def words(figure):
    """What a reader sees in a figure, formulas apart."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    found = ElementTree.fromstring(buffer.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return " ".join("".join(text.itertext()) for text in found)


@pytest.mark.parametrize("label", range(len(ODD)))
def test_names_stand_in_figures_as_they_are(label):
    data = dataset()
    name, seen = class_name(data, label), f"“{list(ODD.values())[label]}”"
    panel = Panel(data.test.images[label], name)
    assert seen in words(image_grid([[panel, None]], title=f"A {name} and more", side=5))
    figure, grid = axes_grid()
    regions = torch.full((3, 3), label)
    axis = torch.arange(3.0)
    draw_regions(grid[0, 0], regions, axis + torch.ones(3, 1), axis, axis, own=label,
                 name=lambda index: class_name(data, index))  # fmt: skip
    with styled():
        grid[0, 0].legend()
        grid[0, 0].set_xlabel(rf"{name} in $\ell_2$")
    shown = words(figure)
    assert seen in shown
    assert "ell" not in shown


def test_long_captions_are_broken_between_words():
    data = dataset()
    caption = f"original: {class_name(data, 3)}, clipped {class_name(data, 10)}"
    figure = image_grid([[Panel(data.test.images[0], caption)]], side=1.6)
    lines = figure.axes[0].get_xlabel().splitlines()
    assert len(lines) > 2
    assert " ".join(lines) == caption
    plain = image_grid([[Panel(data.test.images[0], "one\n\ntwo lines")]], side=1.6)
    assert plain.axes[0].get_xlabel() == "one\n\ntwo lines"


def test_names_stand_in_tables_as_they_are_and_are_no_formulas():
    data = dataset()
    table = pd.DataFrame({"class": [class_text(data, label) for label in range(len(ODD))]})
    text = table.to_csv(index=False)
    again = pd.read_csv(io.StringIO(text))
    assert again["class"].tolist() == [f"“{name}”" for name in ODD]
    assert not any(cell.lstrip('"')[0] in "=+-@" for cell in again["class"])


def test_a_label_without_a_name_is_its_number():
    assert class_name(dataset(), 99) == class_text(dataset(), torch.tensor(99)) == "“99”"


def test_control_characters_are_not_drawn():
    assert literal("a\x00b") == ""
    assert literal("a\tb\r\nc") == "a b c"
