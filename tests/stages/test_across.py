"""Experiments across networks: the runner with a made-up one, and the report of its results."""

import importlib
import json
import sys

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import load_file

from pipeline.claims import ALL
from pipeline.report import read_results
from stages import networks as loaded
from stages.runner import main

EXPERIMENT = '''
"""How often the networks of a suite agree, pair by pair."""
import functools
from dataclasses import dataclass

import torch

from pipeline.findings import Estimate, Findings
from pipeline.studies.universal_settings import Maker
from robustness_geometry.types import predict

SECTION = "Table 4.2"


@dataclass(frozen=True)
class Settings:
    attack: Maker
    samples: int = 20


def toy_transfer(networks, data, settings, executor):
    numbers = {}
    for a, one in networks.items():
        images = data[a].test.images[: settings.samples]
        for b, other in networks.items():
            mine = executor.map(functools.partial(predict, one.model), images).value
            same = mine == predict(other.model, images)
            share = float(same.double().mean())
            numbers[f"agree[{a}][{b}]"] = Estimate(share, share, share, n=len(images))
    tensors = {"shared": torch.tensor([data[a] is data[b] for a in data for b in data])}
    radius = settings.attack.keywords.get("radius")
    return Findings(numbers=numbers, tensors=tensors, notes=[f"radius {radius}"])
'''

SMALL = [
    "suite=smoke",
    "executor.threads=1",
    "executor.workers=1",
    "executor.progress=false",
    "tracking=none",
    "experiments=[toy_transfer]",
    *(
        f"networks.mnist5k_{name}.{key}"
        for name in ("lenet", "fc500_150_10")
        for key in ("training.epochs=1", "dataset.train_limit=100", "dataset.test_limit=30")
    ),
]


@pytest.fixture
def invoke(tmp_path, monkeypatch, capsys):
    """Run universal_transfer with the experiment above; returns exit code, stderr and folder."""
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy_transfer.py").write_text(EXPERIMENT)
    package = importlib.import_module("stages.universal")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "toys")])
    out = tmp_path / "toy" / "universal_transfer" / ALL

    def run(*arguments):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "stages",
                *SMALL,
                f"executor.work={tmp_path / 'work'}",
                f"hydra.run.dir={out}",
                *arguments,
            ],
        )
        GlobalHydra.instance().clear()
        code = 0
        try:
            main("universal_transfer")
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err, out

    yield run
    sys.modules.pop("stages.universal.toy_transfer", None)


@pytest.fixture
def photos(tmp_path):
    """A network of the suite on four made-up images of another shape, as overrides."""
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for index in range(4):
        pixels = np.full((16, 16, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "cat" / f"{index}.png")
    return [
        f"+networks.photos.dataset={{_target_: robustness_geometry.datasets.image_folder, root: "
        f"{tmp_path / 'photos'}}}",
        "+networks.photos.model={_target_: robustness_geometry.models.lenet}",
        "+networks.photos.training={optimiser: sgd, learning_rate: 0.1, epochs: 1, batch_size: 2}",
    ]


def test_the_name_for_several_networks_is_the_reports():
    assert loaded.ALL == ALL


def test_the_suite_can_leave_networks_out_of_an_experiment_across_networks(invoke):
    code, errors, out = invoke("++suite.networks.toy_transfer=[mnist5k_lenet]")
    assert code == 0, errors
    found = json.loads((out / "metrics.json").read_text())["experiments"]["toy_transfer"]
    assert found["numbers"] == {}
    assert found["notes"][0] == "Not measured across networks: this suite takes mnist5k_lenet."


@pytest.mark.smoke
def test_an_experiment_across_networks_gets_those_of_one_shape(invoke, photos):
    code, errors, out = invoke(*photos)
    assert code == 0, errors
    assert {p.name for p in out.iterdir()} >= {
        "metrics.json",
        "timings.json",
        "tables",
        "figures",
        "tensors",
    }
    metrics = json.loads((out / "metrics.json").read_text())
    names = ["mnist5k_lenet", "mnist5k_fc500_150_10"]
    assert (metrics["network"], metrics["dataset"], metrics["networks"]) == (
        "all",
        "mnist5k",
        names,
    )
    assert metrics["seeds"] == [0]
    found = metrics["experiments"]["toy_transfer"]
    assert found["notes"] == [
        "radius None",
        "Left out, as their images are not of shape 1x28x28: photos.",
    ]
    assert found["numbers"]["agree[mnist5k_lenet][mnist5k_lenet]"]["value"] == 1
    assert len(found["numbers"]) == 4
    assert load_file(out / "tensors" / "toy_transfer.safetensors")["shared"].all()
    measured = read_results(out.parents[1], names)["toy_transfer"]["all"]
    assert measured.stage == "universal_transfer"
    assert (
        measured.numbers["agree[mnist5k_lenet][mnist5k_lenet]"].n == 30
    )  # of the smoke suite's block


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["network=[mnist5k_lenet]"], ["network must be", "mnist5k_lenet", "two or more networks"]),
        (["network=[mnist5k_lenet,mnist5k_lenet]"], ["two or more networks"]),
        (
            ["network=[mnist5k_lenet,lenet5000]"],
            ["network must be", "lenet5000", "mnist5k_fc500_150_10"],
        ),
        (["model=nin"], ["model"]),
        (["attack.radius=-1"], ["attack.radius", "-1"]),
        (["attack.norm=3"], ["attack.norm", "3"]),
        (["settings.toy_transfer.sample=3"], ["toy_transfer"]),
        (["experiments=[uap_main]"], ["uap_main", "python -m stages.universal"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_bad_input_is_one_line(invoke, arguments, words):
    code, errors, out = invoke(*arguments)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not (out / "metrics.json").exists()
