"""A network and pictures of somebody else through every chapter that trains nothing."""

import json
import sys

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
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "stages",
            *SMALL,
            f"executor.work={own / 'work'}",
            f"hydra.run.dir={tmp_path / 'out'}",
            "model=custom",
            f"model.target={__name__}.network",
            f"model.checkpoint={own / 'weights.safetensors'}",
            "dataset=image_folder",
            f"dataset.root={own / 'photos'}",
        ],
    )
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    GlobalHydra.instance().clear()
    main(stage)
    assert capsys.readouterr().err == ""
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["experiments"]
    silent = {name for name, experiment in measured.items() if not experiment["numbers"]}
    assert silent == ({"uap_defence"} if stage == "universal" else set())
