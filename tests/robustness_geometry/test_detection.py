import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.counting import count_passes
from pipeline.bootstrap import paired_bootstrap
from pipeline.statistics import auc, auc_difference, balanced_accuracy
from robustness_geometry.checks import InputError
from robustness_geometry.detection import confidence, curvature_score, scored, threshold_at
from robustness_geometry.geometry import class_curvatures
from robustness_geometry.randomness import per_image, seeded

WAYS = ("differences", "products")


class Function(nn.Module):
    """Any function of the flattened images as a classifier."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        return self.function(images.flatten(1))


def sphere(radius):
    """Logits (N, 1) that are positive outside of a sphere round the origin."""
    return Function(lambda flat: flat.square().sum(dim=1, keepdim=True) - radius**2)


def bowls(bends, slopes):
    """f_i = a_i |x|^2 + b_i . x.

    If b_i is along e_1, every normal at x = e_1 is an eigenvector of the Hessian.
    """
    return Function(
        lambda flat: flat.square().sum(dim=1, keepdim=True) * bends + flat[:, :1] * slopes
    )


def at(radius, dimension=6, count=1):
    point = torch.zeros(count, 1, 1, dimension, dtype=torch.float64)
    point[..., 0] = radius
    return point


def relu_network(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))
    return layers.to(dtype).eval()


def pictures(count=7, dtype=torch.float32):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(6), dtype=dtype)


# The sphere


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("radius", "sign"), [(2.0, 1), (0.5, -1)])
def test_inside_a_sphere_the_score_is_positive_and_outside_negative(radius, sign, normalise):
    point = at(1.0)
    found = curvature_score(
        sphere(radius),
        point,
        h=0.3,
        directions=7,
        output="logits",
        normalise=normalise,
        generator=seeded("v"),
    )
    drawn = torch.randn(1, 7, 1, 1, 6, generator=seeded("v"), dtype=torch.float64).flatten(2)
    shares = (drawn[..., 0] / drawn.norm(dim=2)).square()
    # H = 2 I, ||grad F|| = 2 |x| and P takes out the first coordinate; two classes, one of them the
    # own.
    curvature = sign * float((1 - shares).mean()) * (1 if normalise else 2)
    assert float(found.scores) == pytest.approx(curvature / 2, rel=1e-9)
    own = int(radius < 1)
    assert found.labels.tolist() == [own]
    assert found.recovered.tolist() == [1 - own]
    assert float(found.curvatures[0, 1 - own]) == pytest.approx(curvature, rel=1e-9)
    assert math.isnan(found.curvatures[0, own])
    assert found.resolved.tolist() == [True]


@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_hessian_vector_products_agree_on_the_sphere(output):
    points = at(0.9, dimension=50)
    scores = {
        by: curvature_score(
            sphere(1.0), points, h=1e-3, directions=400, output=output, by=by
        ).scores
        for by in WAYS
    }
    assert float(scores["products"]) > 0
    assert float(scores["differences"]) == pytest.approx(float(scores["products"]), rel=0.02)
    if output == "logits":
        assert float(scores["products"]) == pytest.approx(49 / 50 / 0.9 / 2, rel=1e-6)


def test_the_recovered_label_has_the_largest_curvature():
    bends, slopes = torch.tensor([0.0, 0.3, -0.2, 0.1]), torch.tensor([5.0, 1.0, 2.0, 3.0])
    found = curvature_score(
        bowls(bends, slopes), at(1.0), h=0.2, output="logits", normalise=False, directions=3
    )
    assert found.labels.tolist() == [0]
    assert found.recovered.tolist() == [1]
    ratio = found.curvatures[0, 1:] / found.curvatures[0, 1]
    assert ratio.tolist() == pytest.approx([1.0, -2 / 3, 1 / 3], rel=1e-6)
    # Divided by |2 a + b| of each F_i = f_i - f_0, the last class comes first.
    divided = curvature_score(bowls(bends, slopes), at(1.0), h=0.2, output="logits", directions=3)
    parts = divided.curvatures[0, 1:] * torch.tensor([3.4, 3.4, 1.8])
    assert (parts / parts[0]).tolist() == pytest.approx([1.0, -2 / 3, 1 / 3], rel=1e-6)
    assert float(divided.scores) == pytest.approx(float(divided.curvatures[0, 1:].sum()) / 4)


# Any quadratic, and the softmax


@pytest.mark.parametrize("by", WAYS)
def test_the_mean_over_directions_is_that_of_the_projected_hessian(by):
    generator = torch.Generator().manual_seed(0)
    forms = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    forms, rows = forms + forms.mT, torch.randn(3, 4, generator=generator, dtype=torch.float64)
    model = Function(
        lambda flat: torch.einsum("nd,kde,ne->nk", flat, forms, flat) / 2 + flat @ rows.T
    )
    point = torch.rand(1, 1, 2, 2, generator=generator, dtype=torch.float64)
    found = curvature_score(model, point, h=0.5, output="logits", directions=20_000, by=by)
    own = int(found.labels)
    for other in {0, 1, 2} - {own}:
        hessian = forms[other] - forms[own]
        gradient = hessian @ point.flatten() + rows[other] - rows[own]
        unit = gradient / gradient.norm()
        exact = (hessian.trace() - unit @ hessian @ unit) / 4 / gradient.norm()
        spread = float(hessian.norm() / gradient.norm()) / 20_000**0.5
        assert float(found.curvatures[0, other]) == pytest.approx(float(exact), abs=4 * spread)


def test_the_softmax_of_an_affine_network_bends_as_its_formula_says():
    model = Function(lambda flat: flat[:, :1])  # logits (N, 1): the sigmoid of the first pixel
    for distance in (0.5, 20.0):
        found = curvature_score(model, at(distance), h=1e-3, normalise=False, directions=50)
        # F bends along its own normal alone, so that nothing is left in the tangent space.
        assert abs(float(found.scores)) < 1e-9
    radial = sphere(1.0)
    inside = curvature_score(radial, at(0.5), h=1e-3, directions=2000, normalise=True)
    # A level set is the same sphere, whatever increasing function of the logit it is taken of.
    assert float(inside.scores) == pytest.approx(5 / 6 / 0.5 / 2, rel=0.05)


def test_confident_probabilities_keep_their_precision_in_float32():
    def model(dtype):
        scale = torch.tensor([0.0, 30.0, -10.0], dtype=dtype)
        return Function(lambda flat: flat.square().sum(dim=1, keepdim=True).to(dtype) * scale)

    point = at(1.0)
    options = {"h": 0.05, "normalise": False, "directions": 4000}
    exact = curvature_score(model(torch.float64), point, **options)
    single = curvature_score(model(torch.float32), point.float(), **options)
    assert 0 < abs(float(exact.scores)) < 1e-9
    assert float(single.scores) == pytest.approx(float(exact.scores), rel=0.1)
    assert bool(single.resolved)


# What vanishes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", WAYS)
def test_an_affine_network_is_refused(dtype, by):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(dtype).eval()
        images = torch.rand(3, 1, 28, 28, dtype=dtype)
    for h in (0.01, 0.5):
        with pytest.raises(
            InputError, match=rf"h must be a step over which the logits bend.*; got {h}"
        ):
            curvature_score(layers, images, h=h, output="logits", by=by, directions=2)
    (found,) = class_curvatures(layers, images, h=(0.5,), outputs=("logits",))
    assert not bool(found.resolved.any())
    assert float(found.curvatures.nan_to_num().abs().max()) < 1e-3
    exact = Function(lambda flat: flat @ torch.eye(4, dtype=dtype))  # no rounding at powers of two
    corner = torch.tensor([1.0, 0.5, 0.0, 0.25], dtype=dtype).view(1, 1, 2, 2)
    (found,) = class_curvatures(exact, corner, h=(2.0**20,), outputs=("logits",), directions=1)
    assert not bool(found.resolved.any())


def test_a_relu_network_within_one_of_its_pieces_is_refused():
    with pytest.raises(
        InputError, match=r"h must be a step over which the logits bend.*; got 1e-06"
    ):
        curvature_score(
            relu_network(torch.float64), pictures(dtype=torch.float64), h=1e-6, output="logits"
        )
    assert bool(curvature_score(relu_network(), pictures(), h=1.0, output="logits").resolved.any())


@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_a_network_that_does_not_look_at_its_input_is_refused(output):
    model = Function(lambda flat: torch.tensor([1.0, 0.0, -1.0]).expand(len(flat), 3))
    with pytest.raises(InputError, match=r"h must be .*; got 0\.1"):
        curvature_score(model, pictures(), h=0.1, output=output)


def test_a_class_without_a_gradient_adds_nothing():
    bends = torch.tensor([0.0, 1.0, 0.0])
    model = bowls(bends, torch.tensor([0.0, -2.0, 0.0]))
    model.function, inner = (
        lambda flat: inner(flat) + torch.tensor([1.0, 0.0, -1.0]),
        model.function,
    )
    found = curvature_score(model, at(0.9), h=0.1, output="logits", normalise=False)
    assert found.labels.tolist() == [0]
    assert found.curvatures.isnan().tolist() == [[True, False, True]]
    assert float(found.scores) == pytest.approx(float(found.curvatures[0, 1]) / 3)
    assert found.recovered.tolist() == [1]


def test_outputs_that_are_not_finite_make_a_score_that_is_none():
    model = Function(lambda flat: torch.cat([flat[:, :1].sqrt(), flat[:, 1:2].square()], dim=1))
    images = torch.rand(2, 1, 2, 2) + 1
    images[0, 0, 0, 0] = 1e-4
    found = curvature_score(model, images, h=0.5, output="logits")
    assert found.scores.isnan().tolist() == [True, False]


# Images, draws, passes


def test_an_image_is_scored_alike_in_any_company():
    model, images = relu_network(), pictures()
    whole = curvature_score(model, images, h=0.5, generator=per_image(0, "test", range(7)))
    for index in range(7):
        row = slice(index, index + 1)
        alone = curvature_score(model, images[row], h=0.5, generator=per_image(0, "test", [index]))
        size = float(whole.curvatures.nan_to_num().abs().max())
        torch.testing.assert_close(
            alone.curvatures, whole.curvatures[row], rtol=1e-4, atol=1e-4 * size, equal_nan=True
        )
        assert alone.recovered == whole.recovered[row]


def test_several_steps_and_outputs_at_once_are_those_one_by_one():
    model, images = relu_network(), pictures()
    outputs, steps = ("softmax", "logits"), (0.3, 1.0)
    together = class_curvatures(model, images, h=steps, outputs=outputs, directions=4)
    for (output, h), found in zip(product(outputs, steps), together, strict=True):
        one = curvature_score(model, images, h=h, output=output, directions=4)
        torch.testing.assert_close(scored(found, normalise=True).scores, one.scores)


def test_given_labels_and_rivals_replace_the_classifiers_own():
    model, images = relu_network(), pictures()
    (every,) = class_curvatures(model, images, h=(0.5,), outputs=("logits",))
    rivals = every.curvatures.nan_to_num(nan=-math.inf).argmax(dim=1)
    (found,) = class_curvatures(
        model, images, h=(0.5,), outputs=("logits",), labels=rivals, rivals=every.labels[:, None]
    )
    # The same boundary from its other side.
    there = found.curvatures.gather(1, every.labels[:, None])
    torch.testing.assert_close(
        there, -every.curvatures.gather(1, rivals[:, None]), rtol=1e-4, atol=1e-4
    )
    assert (~found.curvatures.isnan()).sum(dim=1).tolist() == [1] * 7


def test_only_the_candidates_take_part():
    model, images = relu_network(), pictures()
    every = curvature_score(model, images, h=0.5)
    few = curvature_score(model, images, h=0.5, candidates=3)
    kept = ~few.curvatures.isnan()
    assert kept.sum(dim=1).tolist() == [2] * 7
    torch.testing.assert_close(few.curvatures[kept], every.curvatures[kept], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(few.scores, few.curvatures.nansum(dim=1) / 3)
    assert curvature_score(model, images, h=0.5, candidates=9).scores.tolist() == pytest.approx(
        every.scores.tolist()
    )


def test_the_passes_are_those_stated():
    model, images = relu_network(), pictures()
    with count_passes(model) as passes:
        curvature_score(model, images, h=0.5, directions=6)
    assert passes.forward == 7 * (1 + 2 * 6 + 2 * 4)
    assert passes.backward == 7 * 4


def test_no_images_give_no_scores():
    found = curvature_score(relu_network(), pictures(0), h=0.5)
    assert found.scores.shape == (0,)
    assert found.curvatures.shape == (0, 5)


def test_model_and_images_stay_as_they_were():
    model, images = relu_network(), pictures().requires_grad_()
    before = images.detach().clone()
    found = curvature_score(model, images, h=0.5)
    assert not found.scores.requires_grad
    assert torch.equal(images, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"h": 0.0}, "h must be .*; got 0"),
        ({"h": -0.1}, "h must be .*; got -0.1"),
        ({"h": math.nan}, "h must be .*; got nan"),
        ({"h": math.inf}, "h must be .*; got inf"),
        ({"h": "wide"}, "h must be .*; got 'wide'"),
        ({"directions": 0}, "directions must be .*; got 0"),
        ({"output": "probabilities"}, "output must be .*; got 'probabilities'"),
        ({"candidates": 1}, "candidates must be .*; got 1"),
        ({"by": "hand"}, "by must be .*; got 'hand'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, key):
    with pytest.raises(InputError, match=f"^{key}"):
        curvature_score(relu_network(), pictures(), **{"h": 0.5, **options})


def test_models_and_images_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match="model must be in evaluation mode"):
        curvature_score(relu_network().train(), pictures(), h=0.5)
    with pytest.raises(InputError, match="images must be finite; got NaN or infinite pixels"):
        curvature_score(relu_network(), pictures() / 0, h=0.5)
    with pytest.raises(InputError, match="logits must be finite; got NaN"):
        curvature_score(Function(lambda flat: flat * math.nan), pictures(), h=0.5)


# Baseline, threshold, statistics


def test_confidence_of_known_logits():
    logits = torch.tensor([[0.0, 3.0, 1.0], [60.0, 0.0, -5.0]])
    model = Function(lambda flat: flat)
    found = confidence(model, logits.view(2, 1, 1, 3))
    p = logits.double().softmax(dim=1)
    assert float(found.scores[0]) == pytest.approx(1 - float(p[0, 1]))
    assert float(found.scores[1]) == pytest.approx(math.exp(-60) + math.exp(-65), rel=1e-9)
    assert found.runner_up.tolist() == [2, 1]
    one = confidence(Function(lambda flat: flat[:, :1]), logits.view(2, 1, 1, 3))
    assert one.runner_up.tolist() == [1, 0]


@given(
    st.lists(st.floats(-5, 5) | st.just(0.0), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 1.0]),
)
@settings(deadline=None)
def test_the_threshold_is_the_lowest_that_keeps_the_rate(values, rate):
    scores = torch.tensor(values, dtype=torch.float64)
    threshold = threshold_at(scores, rate)
    assert float((scores >= threshold).double().mean()) <= rate
    lower = math.nextafter(threshold, -math.inf)
    assert math.isinf(threshold) or float((scores >= lower).double().mean()) > rate


def test_a_score_that_is_none_counts_as_detected():
    scores = torch.tensor([0.0, 1.0, 2.0, math.nan])
    assert threshold_at(scores, 0.25) == math.nextafter(2.0, math.inf)
    assert threshold_at(scores, 0.0) == math.inf
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"^rate must be"):
            threshold_at(scores, rate)
    with pytest.raises(InputError, match=r"^scores must be"):
        threshold_at(scores[:0], 0.1)


def test_statistics_are_those_of_scikit_learn_and_of_counting():
    generator = torch.Generator().manual_seed(2)
    clean = torch.randn(3, 30, generator=generator, dtype=torch.float64).round(decimals=1)
    perturbed = (clean.flip(1) + 0.7).round(decimals=1)
    perturbed[0, :4] = math.nan
    found = paired_bootstrap(
        {"a": clean, "b": perturbed, "c": -clean, "d": -perturbed},
        {
            "auc": auc("a", "b"),
            "best": balanced_accuracy("a", "b"),
            "never": balanced_accuracy("c", "d"),
            "apart": auc_difference(("a", "b"), ("c", "d")),
        },
        resamples=200,
    )
    areas, accuracies, worst = [], [], []
    for low, high in zip(clean, perturbed, strict=True):
        kept = ~high.isnan()
        low, high = low[kept].numpy(), high[kept].numpy()
        areas.append(roc_auc_score([0] * len(low) + [1] * len(high), np.concatenate([low, high])))
        tried = [*np.concatenate([low, high]), 99.0]
        accuracies.append(max(((low < t).mean() + (high >= t).mean()) / 2 for t in tried))
        worst.append(
            max(((-low < t).mean() + (-high >= t).mean()) / 2 for t in [*(-low), *(-high), 99.0])
        )
    assert found["auc"].value == pytest.approx(np.mean(areas))
    assert found["best"].value == pytest.approx(np.mean(accuracies))
    assert found["never"].value == pytest.approx(np.mean(worst))
    assert found["apart"].value == pytest.approx(2 * np.mean(areas) - 1)
    assert found["auc"].low < found["auc"].value < found["auc"].high
    assert (found["auc"].n, found["auc"].seeds) == (28, 3)


def test_statistics_of_nothing_are_none():
    empty = torch.full((2, 5), math.nan)
    found = paired_bootstrap({"a": empty, "b": empty}, {"auc": auc("a", "b")}, resamples=20)
    assert found["auc"].n == 0
