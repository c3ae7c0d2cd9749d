"""DeepFool of each library, under the variant of ours that says what that library does."""

import math

import pytest
from adv_lib.attacks import df
from foolbox import PyTorchModel
from foolbox.attacks import L2DeepFoolAttack, LinfDeepFoolAttack

from benchmarks.peers import PEERS, WIDE
from robustness_geometry.attacks import deepfool
from robustness_geometry.norms import norms
from robustness_geometry.types import predict

PEER = {peer.name: peer for peer in PEERS}


def mean_norm(adversarial, images, p=2.0):
    return float(norms(adversarial - images, p).mean())


def all_fooled(model, adversarial, labels):
    return bool((predict(model, adversarial) != labels).all())


@pytest.mark.parametrize("box", [(0.0, 1.0), None], ids=["clipped", "unclipped"])
@pytest.mark.parametrize(("p", "attack"), [(2.0, L2DeepFoolAttack), (math.inf, LinfDeepFoolAttack)])
def test_mean_norm_is_foolboxs(model, images, labels, p, attack, box):
    ours = deepfool(
        model, images, labels=labels, norm=p, variant="overshot", candidates=10, clip=box
    )
    theirs = attack().run(PyTorchModel(model, bounds=box or WIDE, device="cpu"), images, labels)
    assert bool(ours.success.all())
    assert all_fooled(model, theirs, labels)
    expected = mean_norm(theirs, images, p)
    assert mean_norm(ours.adversarial(images), images, p) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("peer", "variant"),
    # ART linearises at the sum and overshoots at the end, as the thesis does.
    [("adv-lib", "overshot"), ("ART", "thesis"), ("torchattacks", "overshot")],
)
def test_mean_norm_without_clipping(model, images, labels, peer, variant):
    count = min(PEER[peer].images or len(images), len(images))
    images, labels = images[:count], labels[:count]
    theirs = PEER[peer].attack(model, images, labels, False)
    fooled = predict(model, theirs) != labels
    ours = deepfool(model, images, labels=labels, variant=variant)
    both = fooled & ours.success
    assert int(both.sum()) >= 0.9 * count
    expected = mean_norm(theirs[both], images[both])
    assert mean_norm(ours.adversarial(images)[both], images[both]) == pytest.approx(
        expected, rel=1e-3
    )


def test_mean_norm_is_adv_libs_when_clipped(model, images, labels):
    # It clips the last iterate where ours, as foolbox, clips the sum: the paths differ a little.
    theirs = df(model, images, labels, steps=50)
    ours = deepfool(model, images, labels=labels, variant="overshot", clip=(0.0, 1.0))
    assert all_fooled(model, theirs, labels)
    assert mean_norm(ours.adversarial(images), images) == pytest.approx(
        mean_norm(theirs, images), rel=0.02
    )
