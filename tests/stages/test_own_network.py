"""A network and pictures of somebody else through every chapter that trains nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from stages.runner import main

SMALL = [
    "suite=smoke",
    "budget=smoke",
    "executor.threads=1",
    "executor.workers=1",
    "executor.progress=false",
    "tracking=none",
]
COLOURS = {"brick": (200, 90, 60), "grass": (80, 170, 70), "sky": (110, 150, 220)}


def network():
    """A softplus network that tells colours from each other; it is no module of the project."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Sixteen noisy pictures a class, and weights that were fitted to them."""
    folder = tmp_path_factory.mktemp("own")
    rng, rows, labels = np.random.default_rng(0), [], []
    for label, (name, colour) in enumerate(COLOURS.items()):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(16):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (16, 16, 3)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")
            rows.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
            labels.append(label)
    model, images, wanted = network(), torch.stack(rows), torch.tensor(labels)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), wanted).backward()
        optimiser.step()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.mark.smoke
@pytest.mark.parametrize(
    "stage", ["attack", "universal", "semirandom", "curvature", "topology", "detect"]
)
def test_every_chapter_that_trains_nothing(own, monkeypatch, capsys, tmp_path, stage):
    measured = run(
        monkeypatch,
        stage,
        f"executor.work={own / 'work'}",
        f"hydra.run.dir={tmp_path / 'out'}",
        f"model.target={__name__}.network",
        f"model.checkpoint={own / 'weights.safetensors'}",
        "dataset=image_folder",
        f"dataset.root={own / 'photos'}",
    )
    assert capsys.readouterr().err == ""
    silent = {name for name, experiment in measured.items() if not experiment["numbers"]}
    assert silent == ({"uap_defence"} if stage == "universal" else set())


def run(monkeypatch, stage, *options):
    """The experiments in the metrics of a stage with a network of this module."""
    monkeypatch.setattr(sys, "argv", ["stages", *SMALL, "model=custom", *options])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    GlobalHydra.instance().clear()
    main(stage)
    (folder,) = (each.partition("=")[2] for each in options if each.startswith("hydra.run.dir="))
    return json.loads((Path(folder) / "metrics.json").read_text())["experiments"]


def table_network():
    """A network for a table of forty features; it is no module of the project."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 12), nn.Softplus(), nn.Linear(12, 3))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sixty rows of three classes, from -3 to 3, and weights fitted to them in [0, 1]."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = np.clip(rng.normal(0, 0.5, (60, 40)) + 1.5 * np.eye(3, 40)[labels], -3, 3)
    np.savez(folder / "table.npz", x=rows.astype(np.float32), y=labels)
    model, inputs = table_network(), torch.tensor((rows + 3) / 6, dtype=torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.tensor(labels)).backward()
        optimiser.step()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("stage", "main_one"),
    [
        ("attack", "attack_l2"),
        ("universal", "uap_main"),
        ("semirandom", "beta_semirandom"),
        ("topology", "path_connectivity"),
        ("detect", "detect_roc"),
    ],
)
def test_a_table_runs_through_the_chapters(table, monkeypatch, capsys, tmp_path, stage, main_one):
    measured = run(
        monkeypatch,
        stage,
        f"executor.work={table / 'work'}",
        f"hydra.run.dir={tmp_path / 'out'}",
        f"model.target={__name__}.table_network",
        f"model.checkpoint={table / 'weights.safetensors'}",
        "dataset=arrays",
        f"dataset.path={table / 'table.npz'}",
        "dataset.bounds=[-3,3]",
    )
    assert capsys.readouterr().err == ""
    assert measured[main_one]["numbers"]
    assert all(experiment["numbers"] or experiment["notes"] for experiment in measured.values())
    if stage == "attack":
        for name in ("dct_bands", "watermark"):
            assert not measured[name]["numbers"]
            assert any("pictures" in note for note in measured[name]["notes"])


def test_an_experiment_that_refuses_its_data_leaves_the_others(
    table, monkeypatch, capsys, tmp_path
):
    """Paths between images that share a label need more of them than there are."""
    with pytest.raises(SystemExit) as stopped:
        run(
            monkeypatch,
            "topology",
            f"executor.work={table / 'work'}",
            f"hydra.run.dir={tmp_path / 'out'}",
            f"model.target={__name__}.table_network",
            f"model.checkpoint={table / 'weights.safetensors'}",
            "dataset=arrays",
            f"dataset.path={table / 'table.npz'}",
            "dataset.bounds=[-3,3]",
            "settings.convex_mixing.sizes=[2,3,40]",
        )
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("topology: convex_mixing: sizes must be at most")
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["experiments"]
    assert measured["path_connectivity"]["numbers"]
    assert measured["convex_mixing"]["notes"][0].startswith("Not measured: sizes must be at most")
