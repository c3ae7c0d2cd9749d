"""The fine-tuned networks, eps and the judging that the stage's experiments share."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pipeline.evaluation import held_out
from pipeline.findings import Findings
from pipeline.studies.accuracy import accuracies
from pipeline.studies.cure import cure_studies, notes, train_side_by_side, withstood
from pipeline.studies.cure_settings import AdversarySettings, CureSettings, TableSettings
from robustness_geometry.attacks import ddn, deepfool, fgsm, pgd, spsa
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms
from robustness_geometry.training import Adversarial, Cure, Recipe, cure_penalty, train
from robustness_geometry.types import Network, Perturbed, Split, predict
from stages.experiments import Experiment


class Scaled(nn.Module):
    """A network behind the subtraction of a mean and the division by a standard deviation."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std
        self.eval()

    def forward(self, images):
        return self.model((images - self.mean) / self.std)


def test_h_and_lambda_in_standard_deviations_are_those_of_normalised_pixels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bare = (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
        )
        images, labels = torch.rand(4, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    settings = AdversarySettings(h=1.5, weight=4.0, unit="std")
    wanted = 4.0 * cure_penalty(bare, (images - 0.3) / 0.25, labels, h=1.5)
    own = settings.cure(0.25)
    found = own.weight * cure_penalty(Scaled(bare, 0.3, 0.25), images, labels, h=own.h)
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-10, atol=0)
    assert (own.h, own.weight) == (0.375, 0.25)
    in_pixels = replace(settings, unit="pixel").cure(0.25)
    assert (in_pixels.h, in_pixels.weight) == (1.5, 4.0)


def left(images, eps):
    """The share of grey images that are farther than ``eps`` from the threshold."""
    return float(((images[:, 0, 0, 0] - 0.5).abs() > eps).double().mean())


@pytest.mark.parametrize(
    ("share", "grid"),
    [
        (0.5, (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)),
        (0.25, (0.1, 0.35, 0.4)),
        (0.9, (0.3, 0.4)),
        (0.1, (0.03, 0.12)),
    ],
)
def test_eps_is_where_a_share_of_the_accuracy_is_left_on_validation_images(
    made, executor, share, grid
):
    network = Network("threshold", "grey", {0: made.threshold()})
    data = made.grey([0.003 + 0.004 * step for step in range(100)])
    settings = AdversarySettings(
        attack=made.fgsm, eps=None, eps_grid=grid, eps_share=share, eps_samples=30
    )
    study = cure_studies(network, data, settings, executor)[0]
    curve = [(eps, left(study.tried.images, eps)) for eps in (0.0, *grid)]
    assert curve[0][1] == 1
    text = " ".join(notes([study]))
    if curve[-1][1] > share:
        assert study.eps == grid[-1]
        assert "there is none" in text
        return
    end = next(index for index, (_, accuracy) in enumerate(curve) if accuracy <= share)
    (low, more), (high, less) = curve[end - 1], curve[end]
    wanted = low + (high - low) * (more - share) / (more - less)
    assert study.eps == pytest.approx(wanted, rel=0.05)
    assert low <= study.eps <= high
    assert f"original network {share:.0%} of the validation images" in text


@pytest.mark.parametrize(("samples", "count"), [(5, 5), (18, 18), (1000, 18)])
def test_validation_images_are_neither_fine_tuned_on_nor_reported(
    network, data, executor, made, samples, count
):
    settings = AdversarySettings(**made.with_pgd, eps_samples=samples)
    study = cure_studies(network, data, settings, executor)[0]
    assert (len(study.tried), len(study.train)) == (count, 90 - count)
    known = {image.numpy().tobytes() for image in data.train.images}
    tried = {image.numpy().tobytes() for image in study.tried.images}
    assert tried <= known
    assert not tried & {image.numpy().tobytes() for image in study.train.images}
    assert not tried & {image.numpy().tobytes() for image in study.test.images}
    few = cure_studies(network, data, replace(settings, train_samples=20), executor)[0]
    assert len(few.train) == 20
    assert torch.equal(few.train.images, study.train.images[:20])
    assert torch.equal(few.tried.images, study.tried.images)


def test_eps_does_not_depend_on_the_images_that_are_judged(made, executor):
    network = Network("threshold", "grey", {0: made.threshold()})
    data = made.grey([0.01 * step for step in range(1, 41)])
    settings = AdversarySettings(attack=made.fgsm, eps=None, eps_grid=(0.1, 0.2, 0.4))
    others = replace(data, test=made.grey((0.01, 0.02)).test)
    found = [
        cure_studies(network, images, replace(settings, samples=count), executor)[0].eps
        for images in (data, others)
        for count in (1, 3, 80)
    ]
    assert len(set(found)) == 1
    assert 0.1 < found[0] < 0.4


def test_an_experiment_takes_its_first_training_seeds(network, data, executor, made):
    for count, seeds in ((1, [0]), (2, [0, 1]), (5, [0, 1]), (None, [0, 1])):
        settings = CureSettings(**made.small, training_seeds=count)
        assert [s.seed for s in cure_studies(network, data, settings, executor)] == seeds


def test_a_fixed_eps_is_read_as_a_fraction(network, data, executor, made):
    study = cure_studies(
        network, data, AdversarySettings(**{**made.with_pgd, "eps": "4/255"}), executor
    )[0]
    assert study.eps == pytest.approx(4 / 255)
    found = study.judge()(network.model, study.test.images, labels=study.test.labels)
    assert float(norms(found.perturbations, math.inf).max()) == pytest.approx(4 / 255, rel=1e-5)


def test_each_fine_tuning_minimises_what_its_name_says(network, data, executor, made):
    settings = AdversarySettings(**{**made.with_pgd, "attack": partial(pgd, eps=1.0, norm=2)})
    study = cure_studies(network, data, settings, executor)[0]
    assert study.objective("cure") == Cure(2.0, 0.5, 2, "sign")
    assert study.objective("cure_gradient") == Cure(2.0, 0.5, 2, "gradient")
    for name, function in (("advtrain", pgd), ("fgsm", fgsm)):
        objective = study.objective(name)
        assert objective.attack.func is function
        assert (objective.attack.keywords["eps"], objective.attack.keywords["norm"]) == (
            made.eps,
            2.0,
        )
        assert (objective.every, objective.true_labels) == ("step", True)
    assert study.objective("advtrain").attack.keywords["steps"] == 2
    deep = study.objective("deepfool")
    assert (deep.attack.func, deep.every, deep.true_labels) == (deepfool, "epoch", False)


def test_a_fine_tuned_network_is_the_trained_one_and_is_trained_once(
    network, data, executor, made, nothing_new
):
    settings = AdversarySettings(**made.with_pgd)
    first, second = cure_studies(network, data, settings, executor.scope("cure_visual"))
    tuned = {name: first.tuned(name) for name in ("cure", "advtrain", "deepfool")}
    by_hand = train(
        network.models[0], first.train, settings.training, objective=first.objective("cure"), seed=0
    )
    for name, tensor in by_hand.state_dict.items():
        assert torch.equal(tensor, tuned["cure"].model.state_dict()[name])
    assert len(tuned["deepfool"].history["train_loss"]) == 2
    assert len(tuned["cure"].history["penalty"]) == len(tuned["cure"].epochs) == 4
    assert second.tuned("cure").epochs == ()
    assert first.tuned("original").model is network.models[0]
    right = first.right(tuned["cure"].model)
    nothing_new()
    again = cure_studies(
        network, data, replace(settings, samples=30, resamples=7), executor.scope("cure_eps_curve")
    )[0]
    for name, one in tuned.items():
        other = again.tuned(name).model
        assert not other.training
        assert all(torch.equal(one.model.state_dict()[k], v) for k, v in other.state_dict().items())
    assert torch.equal(again.right(again.tuned("cure").model), right)


def test_fine_tuning_leaves_the_original_and_differs_by_name_and_seed(
    network, data, executor, made
):
    before = {name: tensor.clone() for name, tensor in network.models[0].state_dict().items()}
    first, second = cure_studies(network, data, AdversarySettings(**made.with_pgd), executor)
    weights = [
        model.state_dict()["1.weight"]
        for model in (
            first.model,
            first.tuned("cure").model,
            first.tuned("cure_gradient").model,
            first.tuned("advtrain").model,
            first.tuned("fgsm").model,
            first.tuned("deepfool").model,
            second.tuned("cure").model,
        )
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert all(
        torch.equal(before[name], tensor) for name, tensor in network.models[0].state_dict().items()
    )


def test_training_images_and_judged_images_are_different_splits(network, data, executor, made):
    study = cure_studies(
        network, data, AdversarySettings(**{**made.with_pgd, "train_samples": 9}), executor
    )[0]
    assert study.train.labels.bincount().tolist() == [3, 3, 3]
    assert all(
        bool((data.train.images == image).flatten(1).all(dim=1).any())
        for image in study.train.images
    )
    assert torch.equal(study.test.images, held_out(data, 30).images)
    assert not torch.isin(study.test.images, data.train.images).all()


def never(model, images, *, eps, norm=math.inf, labels=None):
    """An attack that gives no number."""
    lost = torch.full_like(images, math.nan)
    found = predict(model, images)
    return Perturbed(lost, found, found, 0 * found, 0 * found == 1)


def test_an_image_counts_as_right_before_and_after(made):
    data = made.grey((0.05, 0.2)).test
    wrong = data.labels.clone()
    wrong[0] = 1 - wrong[0]  # its nearest neighbour on the other side is right
    found = withstood(partial(fgsm, eps=0.1), made.threshold(), data.images, wrong)
    assert found.tolist() == [False, False, True, True]
    assert withstood(partial(never, eps=1.0), made.threshold(), data.images, data.labels).all()


def test_the_attack_is_given_the_true_labels(made):
    data = made.grey((0.2,)).test
    seen = []

    def spy(model, images, *, eps=1.0, labels=None):
        seen.append(labels)
        return fgsm(model, images, eps=0.01, labels=labels)

    withstood(spy, made.threshold(), data.images, 1 - data.labels)
    assert torch.equal(seen[0], 1 - data.labels)


def test_networks_that_the_suite_leaves_out_are_not_touched(network, data, executor):
    ran = []

    def experiment(network, *_):
        ran.append(network.name)
        return Findings(notes=["measured"])

    def measured(networks):
        known, images = {network.name: network}, {network.name: data}
        asked = Experiment("x", "Section 8", experiment, CureSettings(), networks=networks)
        return asked.measure(known, images, executor)

    for networks in (("smooth",), None):
        assert measured(networks).notes == ["measured"]
    assert ran == ["smooth", "smooth"]
    for networks, text in (((), "no network"), (("other", "third"), "other, third")):
        found = measured(networks)
        assert isinstance(found, Findings)
        assert not found.numbers
        assert text in found.notes[0]
    assert ran == ["smooth", "smooth"]


def test_training_on_pgd_needs_its_settings(network, data, executor, made):
    study = cure_studies(network, data, CureSettings(**made.small), executor)[0]
    with pytest.raises(TypeError, match="AdversarySettings"):
        study.objective("advtrain")


def test_untrained_networks_are_refused(data, executor, made):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
    with pytest.raises(
        InputError,
        match=r"network must be a trained network.*; got '?blank with an accuracy of 0.333",
    ):
        cure_studies(
            Network("blank", "rows", {0: model}),
            data,
            AdversarySettings(**{**made.with_pgd, "samples": 1}),
            executor,
        )


def test_data_without_training_images_are_refused(data, made):
    empty = replace(data, train=Split(data.train.images[:0], data.train.labels[:0]))
    settings = AdversarySettings(**made.with_pgd)
    with pytest.raises(InputError, match=r"dataset must be .*; got '?rows without training images"):
        settings.check(empty)
    settings.check(data)
    asked = Experiment("x", "Section 8", Findings, settings, named=True)
    with pytest.raises(InputError, match=r"dataset must be .*; got '?rows without training images"):
        asked.check("smooth", empty)


def test_networks_are_trained_side_by_side_once(network, data, executor, made, nothing_new):
    studies = cure_studies(network, data, AdversarySettings(**made.with_pgd), executor)
    train_side_by_side(studies, ("original", "cure", "fgsm"))
    nothing_new()
    assert all(study.tuned(name).history for study in studies for name in ("cure", "fgsm"))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"eps": 0.0}, "eps must be .*; got 0"),
        ({"eps": "-8/255"}, "eps must be .*; got '-8/255'"),
        ({"eps": "eight"}, "eps must be .*; got 'eight'"),
        ({"eps": None, "eps_grid": ()}, "eps_grid must be"),
        ({"eps": None, "eps_grid": (0.2, 0.1)}, "eps_grid must be"),
        ({"eps_grid": (0.0, 0.1)}, "eps_grid must be .*; got 0"),
        ({"eps_share": 1.0}, "eps_share must be .*; got 1"),
        ({"eps_share": 0}, "eps_share must be .*; got 0"),
        ({"eps_share": math.nan}, "eps_share must be .*; got nan"),
        ({"training_seeds": 0}, "training_seeds must be .*; got 0"),
        ({"eps_samples": 0}, "eps_samples must be .*; got 0"),
        ({"h": 0.0}, "h must be .*; got 0"),
        ({"h": math.inf}, "h must be .*; got inf"),
        ({"weight": -0.1}, "lambda must be .*; got -0.1"),
        ({"ramp": 21}, "ramp must be at most training.epochs=20.*; got 21"),
        ({"ramp": -1}, "ramp must be .*; got -1"),
        ({"training": Recipe(epochs=3)}, "ramp must be .*; got 5"),
        ({"training": {"epochs": 0}}, "training.epochs must be .*; got 0"),
        ({"unit": "grey levels"}, "unit must be .*; got 'grey levels'"),
        ({"adversary_steps": 0}, "adversary_steps must be .*; got 0"),
        ({"finetune_epochs": 0}, "finetune_epochs must be .*; got 0"),
        ({"train_samples": 0}, "train_samples must be .*; got 0"),
        ({"samples": 0}, "samples must be .*; got 0"),
        ({"resamples": 0}, "resamples must be .*; got 0"),
        ({"attack": partial(deepfool)}, "attack must be .*; got 'deepfool'"),
        ({"attack": partial(ddn)}, "attack must be .*; got 'ddn'"),
        ({"attack": partial(fgsm, eps=0.1, norm=1)}, "attack.norm must be .*; got 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        AdversarySettings(**options)


def test_any_attack_within_a_ball_can_judge(network, data, executor, made):
    settings = AdversarySettings(
        **{
            **made.with_pgd,
            "attack": partial(spsa, eps=9.0, norm=2, steps=2, directions=2),
            "eps": 0.3,
        }
    )
    study = cure_studies(network, data, settings, executor)[0]
    assert study.norm == 2.0
    assert study.judge().keywords["eps"] == 0.3
    assert 0 <= float(study.right(study.model, study.judge()).mean()) <= 1
    assert isinstance(study.objective("advtrain"), Adversarial)


def test_intervals_are_over_images_and_seeds(network, data, executor, made):
    found = accuracies(
        cure_studies(network, data, TableSettings(**made.with_pgd), executor),
        lambda study, eps: study.judge(eps=eps),
        60,
    )
    assert (found["adv_cure"].n, found["adv_cure"].seeds) == (30, 2)
    gap = found["adv_advtrain"].value - found["adv_cure"].value
    assert found["adv_advtrain - adv_cure"].value == pytest.approx(gap)
    assert found["clean_original - clean_cure"].value == -found["clean_cure - clean_original"].value
    assert found["far_original"].value <= found["adv_original"].value
    far = found["far_cure"].value - found["far_original"].value
    assert found["far_cure - far_original"].value == pytest.approx(far)
