"""The card's content: the right numbers, their reasons where they are missing, and its schema."""

import importlib
import json
import math
import re
from html import unescape

import pytest
import torch

from pipeline.card import content, picked, schema, written
from pipeline.card_lines import AGREEMENT, EXPERIMENTS, GROUPS, VERSION
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.report.card import is_card, page
from pipeline.statistics import Estimate
from pipeline.studies.agreement import labels_in_triangles, seed_agreement
from robustness_geometry.checks import InputError
from robustness_geometry.types import Dataset, Network, Split
from stages.names import experiments_of, stage_of

LINES = [line for group in GROUPS for line in group.lines]
ABOUT = {
    "network": "own",
    "dataset": "digits",
    "seeds": [0],
    "classes": 10,
    "shape": [1, 28, 28],
    "parameters": 12,
    "budget": "card",
}


def found(**numbers):
    return Findings(numbers={name: Estimate(*value) for name, value in numbers.items()})


@pytest.fixture
def card():
    findings = {
        "attack_l2": found(
            rho_minimum=(0.25, 0.2, 0.3, 60, 0.1), alignment_minimum=(math.nan,) * 3 + (0,)
        ),
        "bracket": Findings(notes=["Budget.", "Not measured: its layers are not known."]),
    }
    return content(ABOUT, findings) | {"notes": ["A note."]}


def test_a_card_has_the_numbers_that_are_there_and_says_why_others_are_not(card):
    assert card["version"] == VERSION
    assert card["numbers"] == {
        "rho_2": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 60, "std": 0.1, "seeds": 1}
    }
    assert card["missing"]["proved_over_nearest_2"] == "Not measured: its layers are not known."
    assert card["missing"]["alignment_2"] == "The experiment has no such number for this network."
    assert card["missing"]["detector_auc"].startswith("This experiment is not among")
    assert {*card["numbers"], *card["missing"]} == {line.key for line in LINES}
    assert json.loads(written(card)) == card


def test_every_line_is_a_number_of_an_experiment_that_exists(root):
    assert len({line.key for line in LINES}) == len(LINES)
    for name in EXPERIMENTS:
        module = importlib.import_module(experiments_of(stage_of(name))[name])
        assert module.SECTION
    metrics = {}
    for path in (root / "results").glob("*/*/*/metrics.json"):
        for name, entry in json.loads(path.read_text())["experiments"].items():
            metrics.setdefault(name, set()).update(entry["numbers"])
    unknown = [
        line.number
        for line in LINES
        if line.experiment != AGREEMENT and line.number not in metrics[line.experiment]
    ]
    assert unknown == []


def test_the_schema_names_each_field_with_its_meaning(card, root):
    made = schema()
    assert made["required"] == list(made["properties"])
    assert set(made["required"]) == set(card)
    fields = made["properties"]["numbers"]["properties"]
    assert list(fields) == [line.key for line in LINES]
    for line in LINES:
        assert line.meaning in fields[line.key]["description"]
    estimate = made["$defs"]["estimate"]
    assert set(estimate["required"]) == set(card["numbers"]["rho_2"])
    assert json.loads((root / "docs" / "card.schema.json").read_text()) == made


def test_the_page_is_one_file_with_every_number_or_its_reason(card, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n")
    text = page(card, {"attack_l2": {"figure_3_5": picture, "norms": tmp_path / "gone.png"}})
    assert "Geometry card of own" in text
    assert text.count("<figure>") == 1
    assert 'alt="Figure 3.5 of own"' in text
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", text) == []
    shown = unescape(text)
    for line in LINES:
        assert line.title in shown
    assert "Not measured: its layers are not known." in text
    assert "0.25" in text
    assert is_card(text)
    assert is_card(written(card))
    assert not is_card("<html>mine</html>")
    assert not is_card("[1]")


class Halves(torch.nn.Module):
    """Class 1 where the mean pixel is above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(threshold))

    def forward(self, images):
        above = images.flatten(1).mean(dim=1) - self.threshold
        return torch.stack([-above, above], dim=1)


@pytest.fixture
def greys():
    """Two images, black and white, many times: a triangle is a point or a segment."""
    images = torch.tensor([0.0, 1.0]).repeat(20).view(40, 1, 1, 1).expand(40, 1, 2, 2).clone()
    split = Split(images, torch.arange(40) % 2)
    return Dataset("greys", split, split, ("0", "1"), (0.5,), (0.5,))


def test_labels_in_a_triangle_are_those_of_its_convex_combinations():
    corners = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    labels = labels_in_triangles(Halves(0.6).eval(), *corners, steps=4)
    assert labels.shape == (1, 15)
    assert int(labels.sum()) == 3  # weights 1, 3/4 and 3/4 of the white corner
    with pytest.raises(InputError, match="steps must be"):
        labels_in_triangles(Halves(0.6).eval(), *corners, steps=0)


def test_seeds_agree_where_no_threshold_lies_between_them(greys, tmp_path):
    executor = Executor(threads=1, progress=False, work=tmp_path)

    def agreement(*thresholds):
        models = {k: Halves(threshold).eval() for k, threshold in enumerate(thresholds)}
        return seed_agreement(Network("halves", "greys", models), greys, executor, steps=4)

    assert agreement(0.55, 0.6).numbers[AGREEMENT].value == 1
    apart = agreement(0.4, 0.6).numbers[AGREEMENT]
    assert 0.6 < apart.value < 1  # the points of mean 1/2, on triangles of both colours
    assert apart.low < apart.value < apart.high
    three = agreement(0.4, 0.6, 0.6).numbers[AGREEMENT].value
    assert three == pytest.approx(1 - 2 * (1 - apart.value) / 3)
    assert agreement(0.5).numbers == {}


def test_a_number_that_is_not_finite_is_not_picked():
    findings = {"uap_main": found(xi_l2=(math.inf, 1, 2, 3), fool_val_l2=(0.5, 0.4, 0.6, 7))}
    assert list(picked(findings)) == ["universal_fooling"]
