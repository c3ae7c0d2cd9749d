"""Every network of every suite can be built, takes its data set's images, and can be attacked."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from robustness_geometry.attacks import deepfool
from robustness_geometry.models import build
from robustness_geometry.types import Dataset, Split
from stages.config import check_network, factory, read

SHAPES = {  # images, classes
    "mnist5k": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "svhn": ((3, 32, 32), 10),
    "imagenet": ((3, 224, 224), 1000),
    "photographs": ((3, 240, 240), 1000),
}


def networks():
    from pathlib import Path

    conf = Path(__file__).resolve().parents[2] / "conf"
    for path in sorted((conf / "suite").glob("*.yaml")):
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = read(compose("base", [f"suite={path.stem}"]))
        for name, network in config.networks.items():
            yield pytest.param(name, network, id=f"{path.stem}-{name}")


def fixture_data(name):
    shape, classes = SHAPES[name]
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.tensor([0, 1]))
    channels = shape[0]
    return Dataset(
        name, split, split, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels
    )


@pytest.mark.parametrize(("name", "network"), list(networks()))
def test_every_network_takes_a_step(name, network):
    check_network(network, f"networks.{name}.")
    if network.model["_target_"].endswith("efficientnet_lite"):
        pytest.importorskip("efficientnet_lite_pytorch")
    leaf = {**network.model, "checkpoint": "random"}
    if "weights" in leaf:
        leaf["weights"] = None
    data = fixture_data(network.dataset["_target_"].rpartition(".")[2])
    model = build(factory(leaf, f"networks.{name}.model"), data, 0)
    images = data.test.images[:1]
    assert model(images).shape == (1, len(data.classes))
    found = deepfool(model, images, steps=1, candidates=2)
    assert found.perturbations.shape == images.shape
    assert torch.isfinite(found.perturbations).all()
