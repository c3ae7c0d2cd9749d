"""Which DeepFool experiments run, and FGSM's one eps that several chapters search."""

from functools import partial

import pytest
import torch

from pipeline.studies.attacking import deepfool_of, fgsm_at_rate, fooled_at, smallest_eps
from pipeline.studies.subject import placed
from robustness_geometry.attacks import deepfool, fgsm

SHAPE = (1, 8, 8)


def test_the_studied_deepfool_keeps_its_options_and_any_other_attack_gives_the_default():
    studied = deepfool_of(partial(deepfool, overshoot=0.5, norm=1), norm=2.0)
    assert (studied.func, studied.keywords) == (deepfool, {"overshoot": 0.5, "norm": 2.0})
    other = deepfool_of(partial(fgsm, eps=0.1), norm=2.0)
    assert (other.func, other.keywords) == (deepfool, {"norm": 2.0})
    assert deepfool_of(partial(deepfool, prune=3.0)).keywords == {"prune": 3.0}


def test_all_classes_take_part_in_a_subspace():
    inside = deepfool_of(partial(deepfool, prune=3.0), subspace=torch.eye(4))
    assert inside.keywords["prune"] is None
    nested = deepfool_of(inside, subspace=torch.eye(2))
    assert (nested.keywords["prune"], len(nested.keywords["subspace"])) == (None, 2)


def test_the_smallest_eps_is_searched_once_and_fools_as_many_as_it_says(small, executor):
    model, images = small.affine(3, SHAPE, 0), small.dataset(SHAPE, 3, 40).test.images
    found = smallest_eps(model, images, 0.9, executor.scope("first"))
    assert found.reachable
    assert found.rate >= 0.9
    share = fooled_at(model, images, eps=(found.eps,)).double().mean()
    assert float(share) == pytest.approx(found.rate)
    folders = {path.name for path in executor.work.rglob("*") if path.is_dir()}
    eps, perturbed = fgsm_at_rate(model, images, 0.9, executor.scope("second", seed=1))
    assert eps == found.eps
    assert float(perturbed.value.success.double().mean()) == pytest.approx(found.rate)
    searched = {path.name for path in executor.work.rglob("*") if path.is_dir()} - folders
    assert len(searched) == 1  # FGSM itself; the search was taken up


def test_a_rate_out_of_reach_gives_the_eps_that_fools_most(small, executor):
    model = small.affine(2, SHAPE, 0)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    images = small.dataset(SHAPE, 2, 10).test.images
    assert not smallest_eps(model, images, 0.9, executor).reachable
    eps, perturbed = fgsm_at_rate(model, images, 0.9, executor)
    assert eps != eps
    assert perturbed is None


def test_tensors_are_placed_beside_the_weights(small):
    model = small.affine(2, SHAPE, 0).double()
    assert placed(torch.zeros(2), model).dtype == torch.float64
    assert placed(torch.zeros(2), torch.nn.Flatten()).dtype == torch.float32
