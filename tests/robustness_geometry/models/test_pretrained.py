from functools import partial

import pytest
import torch

from robustness_geometry import datasets
from robustness_geometry.checks import InputError
from robustness_geometry.models import build, describe, nin, pretrained, restore, save_weights
from robustness_geometry.models.pretrained import WEIGHTS

NAMES = {"mnist5k_lenet", "mnist5k_fc500_150_10", "mnist5k_nin"}
FILES = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist5k()


def test_the_embedded_networks_are_there_and_small():
    assert {path.stem for path in FILES} >= NAMES
    assert sum(path.stat().st_size for path in FILES) < 4_000_000


@pytest.mark.parametrize("name", sorted(NAMES | {path.stem for path in FILES}))
def test_committed_networks_know_unseen_digits(name, digits):
    model = pretrained(name)
    assert not model.training
    with torch.no_grad():
        right = model(digits.test.images).argmax(dim=1) == digits.test.labels
    assert right.double().mean() > 0.93


def test_a_described_file_restores_itself(tmp_path, digits):
    factory = partial(nin, width=8, batch_norm=True)
    model = build(factory, digits, 3)
    save_weights(model, tmp_path / "made.safetensors", describe(factory, digits))
    restored = restore(tmp_path / "made.safetensors")
    assert not restored.training
    assert torch.equal(restored(digits.test.images[:4]), model(digits.test.images[:4]))


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"^pretrained must be one of.*; got 'mnist5k_resnet'"):
        pretrained("mnist5k_resnet")


@pytest.mark.parametrize("factory", ["custom", "os.system", "build", ""])
def test_files_may_not_name_other_code(tmp_path, factory, digits):
    path = tmp_path / "odd.safetensors"
    save_weights(
        build(partial(nin, width=4), digits), path, {"factory": factory, "arguments": "{}"}
    )
    with pytest.raises(InputError, match=rf"model.checkpoint must be .*it names '{factory}'"):
        restore(path)
