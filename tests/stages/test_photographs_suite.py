"""The suite of photographs composes, and asks for nothing that needs true labels or training."""

import math
from dataclasses import fields
from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from pipeline.executor import Executor
from pipeline.studies.universal import UniversalStudy
from pipeline.studies.universal_settings import UniversalSettings
from robustness_geometry.attacks import universal_perturbation
from robustness_geometry.types import Dataset, Split
from stages.config import read
from stages.experiments import select
from stages.names import ACROSS

STAGES = ("attack", "universal", "semirandom", "curvature", *ACROSS)
SPLIT = Split(torch.rand(4, 3, 240, 240), torch.arange(4))


@pytest.fixture(params=["photographs", "smoke"])
def config(request, root):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        overrides = ["suite=photographs", f"budget={request.param}"]
        return read(compose("base", [*overrides, "network=photographs_lite1"]))


@pytest.mark.parametrize("stage", STAGES)
def test_its_settings_suit_the_photographs(config, stage):
    classes = tuple(map(str, range(1000)))
    data = Dataset("photographs", SPLIT, SPLIT, classes, (0.5,) * 3, (0.5,) * 3)
    measured = [each for each in select(stage, config) if not each.leaves_out("photographs_lite1")]
    assert measured
    for each in measured:
        each.check("photographs_lite1", data)
        assert not getattr(each.settings, "trains", False)
        assert "tune_samples" not in {field.name for field in fields(each.settings)}


def test_chapters_with_true_labels_are_left_out(config):
    for stage in ("train", "finetune"):
        assert all(each.leaves_out("photographs_lite1") for each in select(stage, config))
    assert [config.suite.networks[stage] for stage in ("topology", "detect", "cure")] == [[]] * 3


@pytest.mark.parametrize("norm", [2, math.inf])
def test_its_radii_are_the_thesis_of_the_same_size_per_pixel(config, norm, tmp_path):
    options = {k: v for k, v in config.universal["attack"].items() if k != "_target_"}
    settings = UniversalSettings(attack=partial(universal_perturbation, **options))
    executor = Executor(accelerator="cpu", progress=False, work=str(tmp_path))
    study = UniversalStudy(nn.Flatten().eval(), 0, SPLIT, SPLIT, executor, settings)
    per_pixel = 255 * study.xi(norm) / (240 if norm == 2 else 1)
    assert per_pixel == pytest.approx(2000 / 224 if norm == 2 else 10, rel=0.002)
