"""Rehearsals: made-up files that the real loaders read, and a suite's parameters for them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from pipeline import made_up, rehearsal
from pipeline.params import composed
from pipeline.rehearsal import Stage, adapted, copied, table
from robustness_geometry import datasets
from robustness_geometry.checks import InputError

SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "svhn": (3, 32, 32),
    "imagenet": (3, 224, 224),
    "photographs": (3, 240, 240),
}


@pytest.mark.parametrize("name", made_up.DATASETS)
def test_the_loader_reads_the_made_up_files(name, tmp_path):
    made_up.make(name, tmp_path / name, train=20, test=6)
    data = getattr(made_up, name)(root=str(tmp_path / name), download=False)
    assert (data.name, data.shape) == (name, SHAPES[name])
    assert len(data.train) == (0 if name == "imagenet" else 20)
    assert sorted(data.test.labels.tolist()) == list(range(6))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_pixels_and_labels_are_those_that_were_made_up(name, tmp_path):
    made_up.make(name, tmp_path, train=20, test=12)
    data = getattr(made_up, name)(root=tmp_path, download=False)
    pixels, labels = made_up.pictures(12, SHAPES[name], seed=1)
    assert np.array_equal(data.test.images.mul(255).round().byte().numpy(), pixels)
    assert data.test.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "imagenet"])
def test_the_checksums_hold_again_afterwards(name, tmp_path):
    made_up.make(name, tmp_path / name, train=20, test=5)
    getattr(made_up, name)(root=tmp_path / name, download=False)
    if name == "imagenet":  # nothing is checked any more once the archives are unpacked
        (tmp_path / name / "meta.bin").unlink()
    with pytest.raises(InputError, match=r"dataset\.root must be"):
        getattr(datasets, name)(root=tmp_path / name, download=False)


def test_a_classes_pictures_are_nearer_to_each_other_than_to_others():
    pixels, labels = made_up.pictures(40, (3, 32, 32))
    flat = torch.from_numpy(pixels).flatten(1).float()
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    assert labels[distances.argmin(dim=1)].tolist() == labels.tolist()


def params(suite):
    return yaml.safe_load(composed([f"suite={suite}", "budget=smoke"]))


def test_a_suite_keeps_the_networks_that_are_named(tmp_path):
    made = adapted(params("thesis"), ["mnist_lenet", "svhn_resnet18"], tmp_path)
    assert list(made["networks"]) == ["mnist_lenet", "svhn_resnet18"]
    assert made["suite"]["networks"]["cure"] == ["svhn_resnet18"]
    assert made["suite"]["networks"]["cure_cifar10"] == []
    assert made["suite"]["counterparts"]["default"] == "mnist_lenet"
    assert set(made["suite"]["counterparts"].values()) <= set(made["networks"])
    leaf = made["networks"]["svhn_resnet18"]["dataset"]
    assert leaf["_target_"] == "pipeline.made_up.svhn"
    assert leaf["root"] == str(tmp_path / "svhn")


def test_published_weights_become_fresh_ones_and_few_classes_compete(tmp_path):
    made = adapted(params("imagenet"), [], tmp_path)
    for network in made["networks"].values():
        assert network["model"]["checkpoint"] == "random"
        assert network["model"].get("weights") is None
        assert network["dataset"]["train_limit"] is None
    assert made["attack"]["candidates"] == 3
    assert made["curvature"]["boundary_attack"]["candidates"] == 3


def test_digits_in_a_package_stay_as_they_are(tmp_path):
    made = adapted(params("digits"), ["mnist5k_lenet"], tmp_path)
    leaf = made["networks"]["mnist5k_lenet"]["dataset"]
    assert leaf["_target_"] == "robustness_geometry.datasets.mnist5k"
    assert leaf["test_limit"] == 60


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["suite=thesiss"], "suite must be one of"),
        (["suite=thesis", "networks=mnist_lenet,lenet"], "networks must be names of the suite's"),
        (["suite=thesis", "atack.steps=3"], "atack"),
    ],
)
def test_what_does_not_exist_is_one_line_and_exit_code_2(words, key, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert rehearsal.command(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert key in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_copy_has_no_results_and_a_graph_that_dvc_reads(root, tmp_path):
    place = copied(root, tmp_path / "copy")
    assert not (place / "results").exists()
    assert not (place / "dvc.lock").exists()
    rehearsal._without_across(place)
    made = adapted(params("thesis"), ["mnist_lenet"], place / "data")
    (place / "params.yaml").write_text(yaml.safe_dump(made))
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "train@mnist_lenet" in listed
    assert not [name for name in listed if "transfer" in name or name.startswith("cure")]


def test_stages_are_timed_and_the_table_counts_them(capsys):
    stages = {name: Stage(name) for name in ("train@a", "attack@a", "report")}
    lines = ["Running stage 'train@a':\n", "> python\n", "Running stage 'attack@a':\n"]
    kept = []
    rehearsal._follow(lines, stages, kept.append)
    assert kept == lines
    assert [each.outcome for each in stages.values()] == ["failed", "failed", "not run"]
    stages["train@a"].outcome = "ran"
    last = table(list(stages.values())).splitlines()[-1]
    assert last.startswith("1 of 3 stages ran, 1 failed,")
