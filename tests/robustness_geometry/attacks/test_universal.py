"""Algorithm 4: closed forms, the plain loop bit for bit, mini-batches, bad input and files."""

import math
import re
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustness_geometry.attacks import (
    Universal,
    _look_ahead,
    deepfool,
    fooled,
    load_universal,
    save_universal,
    universal_perturbation,
)
from robustness_geometry.checks import InputError
from robustness_geometry.norms import norms, project
from robustness_geometry.randomness import seeded
from robustness_geometry.types import predict

BALLS = [1, 2, math.inf]


class Uneven(nn.Module):
    """A classifier whose logits depend on the size of the batch, as rounding does, only more so.

    The most frequent of its labels has a twin with almost the same logit, so that many images are
    near ties, whatever is added to them.
    """

    def __init__(self, network, images):
        super().__init__()
        self.network = network
        self.twin = int(predict(network, images).mode().values)
        self.eval()

    def forward(self, images):
        logits = self.network(images)
        sums = images.flatten(1).sum(dim=1, keepdim=True)
        logits = torch.cat(
            [logits, logits[:, self.twin :][:, :1] + 2e-4 * torch.sin(1e3 * sums)], dim=1
        )
        return logits + (len(images) > 1) * 4e-4 * torch.sin(1e4 * logits * len(images))


@pytest.fixture(scope="module")
def many():
    """Random images (24, 1, 12, 12) for ``network``."""
    return torch.rand(24, 1, 12, 12, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def exact(network):
    return deepcopy(network).double()


@pytest.fixture
def halves(table):
    """A binary affine classifier, and images at distance 0.2 on either side of its boundary."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(
        torch.randn(12, generator=generator, dtype=torch.float64), dim=0
    )
    points = 0.5 + 0.1 * torch.randn(20, 12, generator=generator, dtype=torch.float64)
    side = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10)
    images = points + (0.2 * side - (points - 0.5) @ normal)[:, None] * normal
    return table(lambda x: (x - 0.5) @ normal[:, None]), images.view(-1, 1, 1, 12), normal


def plain(model, images, *, norm, radius, passes, batch_size=1, generator):
    """Algorithm 4 written out, one image at a time."""
    labels, v, best, rates = predict(model, images), torch.zeros_like(images[:1]), None, []

    def unfooled(index):
        return bool(predict(model, images[index : index + 1] + v) == labels[index])

    for _ in range(passes):
        order = torch.randperm(len(images), generator=generator).tolist()
        while order:
            group = []
            while order and len(group) < batch_size:
                index = order.pop(0)
                group += [index] if unfooled(index) else []
            found = deepfool(model, images[group] + v, steps=10, labels=labels[group])
            for row, index in enumerate(group):
                if found.success[row] and unfooled(index):
                    v = project(v + found.perturbations[row], radius, norm)
        rates.append(float((predict(model, images + v) != labels).double().mean()))
        best = v if rates[-1] == max(rates) and rates.count(rates[-1]) == 1 else best
    return best, rates


def test_a_vector_fools_half_of_a_balanced_binary_affine_problem_and_a_direction_all(halves):
    model, images, normal = halves
    found = universal_perturbation(model, images, radius=1.0, passes=3)
    either = [fooled(model, images, sign * found.perturbation) for sign in (1, -1)]
    assert found.fooling_rate == either[0].double().mean() == 0.5
    assert bool((either[0] ^ either[1]).all())
    along = float(found.perturbation.flatten() @ normal)
    assert abs(along) == pytest.approx(float(norms(found.perturbation)), rel=1e-9)
    assert found.stopped == "all passes made"


def test_a_radius_below_the_distance_fools_none(halves):
    model, images, _ = halves
    found = universal_perturbation(model, images, radius=0.19, passes=2)
    assert found.fooling_rate == 0
    assert norms(found.perturbation).item() == pytest.approx(0.19)


@pytest.mark.parametrize("p", BALLS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_vector_is_that_of_the_algorithm_written_out(exact, many, p, batch_size):
    images, radius = many[:16].double(), {1: 4.0, 2: 0.6, math.inf: 0.06}[p]
    options = {"norm": p, "radius": radius, "passes": 2, "batch_size": batch_size}
    expected, rates = plain(exact, images, **options, generator=seeded(3))
    found = universal_perturbation(
        exact, images, **options, fooling_rate=0.999, generator=seeded(3)
    )
    torch.testing.assert_close(found.perturbation, expected, rtol=1e-9, atol=1e-12)
    assert found.history.tolist() == rates
    assert norms(found.perturbation, p).item() <= radius * (1 + 1e-12)


@pytest.fixture(scope="module")
def ties(network, many):
    return Uneven(network, many), many, {"radius": 1.0, "passes": 1, "fooling_rate": 0.99}


def look_at(model, images, options, look_ahead):
    found = universal_perturbation(model, images, **options, look_ahead=look_ahead)
    return found.perturbation, found.visits.tolist(), found.updates.tolist(), found.history.tolist()


@pytest.mark.parametrize("look_ahead", [2, 5, 128])
def test_looking_ahead_gives_the_plain_loop_bit_for_bit(ties, look_ahead):
    alone, *counts = look_at(*ties, 1)
    ahead, *others = look_at(*ties, look_ahead)
    assert torch.equal(alone, ahead)
    assert counts == others


def test_near_ties_are_what_makes_it_so(ties, monkeypatch):
    monkeypatch.setattr(_look_ahead, "NEAR", 0.0)
    assert not torch.equal(look_at(*ties, 1)[0], look_at(*ties, 128)[0])


def test_images_model_and_random_numbers_stay_as_they_were(network, many):
    model, images, state = deepcopy(network), many.clone().requires_grad_(), torch.get_rng_state()
    before = deepcopy(model.state_dict())
    universal_perturbation(model, images, radius=1.0, passes=1, batch_size=8)
    assert torch.equal(images, many)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True)
    )
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )


def test_the_generator_decides_the_order(network, many):
    first, again, other = (
        universal_perturbation(network, many, radius=1.0, passes=1, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.perturbation, again.perturbation)
    assert not torch.equal(first.perturbation, other.perturbation)
    default = universal_perturbation(network, many, radius=1.0, passes=1)
    same = universal_perturbation(network, many, radius=1.0, passes=1, generator=seeded(0))
    assert torch.equal(default.perturbation, same.perturbation)


def test_the_best_vector_at_the_end_of_a_pass_is_kept(network, many):
    found = universal_perturbation(
        network, many, radius=0.5, passes=4, fooling_rate=0.99, batch_size=4
    )
    assert found.passes == len(found.history) == 4
    assert found.fooling_rate == found.history.max()
    assert fooled(network, many, found.perturbation).double().mean() == found.fooling_rate
    assert bool((found.visits >= found.updates).all())


def test_passes_end_at_the_fooling_rate(network, many):
    found = universal_perturbation(network, many, radius=2.0, fooling_rate=0.2)
    assert found.stopped == "fooling rate reached"
    assert found.fooling_rate >= 0.2
    assert found.passes < 10


def test_steps_that_do_not_arrive_are_left_out_and_the_search_says_so(table, points):
    # Each step leaves two thirds of the way to the boundary, so that the overshoot crosses it in
    # the tenth.
    model, images = table(lambda x: (x[:, :1] - 0.5) ** 3), points(count=8)
    found = universal_perturbation(model, images, radius=1.0, steps=3)
    assert found.stopped == "no update accepted in a pass"
    assert found.passes == 1
    assert found.visits.tolist() == [8]
    assert bool((found.perturbation == 0).all())
    assert found.fooling_rate == 0
    assert int(universal_perturbation(model, images, radius=1.0, steps=12, passes=1).updates) > 0


def test_one_logit_is_the_same_as_two(halves, table):
    model, images, _ = halves
    two = table(lambda x: torch.cat([torch.zeros_like(x[:, :1]), model(x)], dim=1))
    found = [
        universal_perturbation(each, images, radius=0.5, passes=2, batch_size=3)
        for each in (model, two)
    ]
    assert torch.equal(found[0].perturbation, found[1].perturbation)


def test_points_stay_inside_the_clip(network, many):
    seen = []
    model = deepcopy(network)
    model.register_forward_pre_hook(lambda _, given: seen.append(torch.aminmax(given[0].detach())))
    images = (2 * many - 0.5).clamp(0, 1)
    found = universal_perturbation(
        model, images, radius=2.0, passes=1, clip=(0.0, 1.0), batch_size=4
    )
    assert min(low for low, _ in seen) >= 0
    assert max(high for _, high in seen) <= 1
    clipped = fooled(network, images, found.perturbation, clip=(0.0, 1.0))
    assert clipped.double().mean() == found.fooling_rate
    assert found.fooling_rate > 0


def test_logits_that_are_not_finite_fool_nobody_and_are_passed_over(table):
    # Pixel 0 decides; where pixel 1 rises above 1 there is nothing.
    model = table(lambda x: torch.where(x[:, 1:2] > 1, math.nan, x[:, :1] - 0.5 + x[:, 1:2] - 0.9))
    images = torch.tensor([[0.4, 0.95], [0.55, 0.9], [0.45, 0.9]], dtype=torch.float64).view(
        3, 1, 1, 2
    )
    v = torch.tensor([0.1, 0.1], dtype=torch.float64).view(1, 1, 1, 2)
    assert fooled(model, images, v).tolist() == [False, False, True]
    found = universal_perturbation(model, images, radius=0.3, passes=2)
    assert bool(torch.isfinite(found.perturbation).all())


def test_given_labels_are_the_ones_to_change(network, many):
    labels = predict(network, many)
    given = torch.where(torch.arange(24) < 6, (labels + 1) % 5, labels)
    v = torch.zeros_like(many[:1])
    assert fooled(network, many, v, labels=given).tolist() == [True] * 6 + [False] * 18
    found = universal_perturbation(network, many, radius=1e-6, passes=1, labels=given)
    assert found.history.tolist() == [0.25]


REFUSED = [
    ({"radius": 0}, "radius must be .*; got 0"),
    ({"radius": -1.0}, "radius must be .*; got -1.0"),
    ({"radius": 12.1}, "radius must be at most 12, the l_2 norm of an image of ones.*; got 12.1"),
    ({"norm": "inf", "radius": 10}, "radius must be at most 1,.*; got 10"),
    ({"norm": 3}, "norm must be 1, 2 or inf.*; got 3"),
    ({"norm": "wide"}, "norm must be .*; got 'wide'"),
    ({"fooling_rate": 0}, "fooling_rate must be .*; got 0"),
    ({"fooling_rate": 1.0}, "fooling_rate must be .*; got 1.0"),
    ({"fooling_rate": math.nan}, "fooling_rate must be .*; got nan"),
    ({"passes": 0}, "passes must be .*; got 0"),
    ({"batch_size": 0}, "batch_size must be .*; got 0"),
    ({"steps": 0}, "steps must be .*; got 0"),
    ({"overshoot": -0.1}, "overshoot must be .*; got -0.1"),
    ({"candidates": 1}, "candidates must be .*; got 1"),
    ({"look_ahead": 0}, "look_ahead must be .*; got 0"),
    ({"clip": (1.0, 0.0)}, "clip must be"),
    ({"clip": (0.2, 0.8)}, r"images must be within \[0.2, 0.8\]"),
    ({"labels": torch.full((24,), 5)}, r"labels must be whole numbers from 0 to 4; got \[5\]"),
    (
        {"labels": torch.ones(24, dtype=torch.int64)},
        "images must be of at least two labels; got 24 images of 1 labels",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_options_that_cannot_be_used_are_refused(options, message, network, many):
    with pytest.raises(InputError) as caught:
        universal_perturbation(network, many, **{"radius": 1.0} | options)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_images_that_cannot_be_used_are_refused(network, many):
    same = many[:1].expand(5, -1, -1, -1)
    for images, message in (
        (many[:0], "images must be .*; got 0 images of 0 labels"),
        (same, "images must be .*; got 5 images of 1 labels"),
    ):
        with pytest.raises(InputError, match=message):
            universal_perturbation(network, images, radius=1.0)
    with pytest.raises(InputError, match="images must be finite; got NaN or infinite pixels"):
        universal_perturbation(network, many.index_fill(0, torch.tensor([1]), math.nan), radius=1.0)
    with pytest.raises(InputError, match="model must be in evaluation mode"):
        universal_perturbation(deepcopy(network).train(), many, radius=1.0)
    with pytest.raises(InputError, match=r"perturbation\.shape"):
        fooled(network, many, many[:2])


SETTINGS = {
    "norm": math.inf,
    "radius": 0.25,
    "batch_size": 1,
    "clip": (0.0, 1.0),
    "candidates": None,
}


@pytest.fixture
def vector():
    visits, updates = torch.tensor([4]), torch.tensor([3])
    history = torch.tensor([0.5], dtype=torch.float64)
    return Universal(
        torch.linspace(-0.25, 0.25, 16).view(1, 1, 4, 4),
        history,
        visits,
        updates,
        torch.tensor(False),
    )


def test_a_vector_and_its_settings_come_back_from_a_file(vector, tmp_path):
    path = tmp_path / "new" / "v.safetensors"
    save_universal(vector, path, SETTINGS)
    found, settings = load_universal(path, (1, 4, 4))
    assert settings == SETTINGS | {"norm": "inf", "clip": [0.0, 1.0]}
    assert all(torch.equal(getattr(found, name), getattr(vector, name)) for name in vars(vector))
    assert found.stopped == vector.stopped
    assert torch.equal(load_universal(path)[0].perturbation, vector.perturbation)


def test_vectors_that_do_not_fit_are_refused(vector, tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(InputError, match="settings must be"):
        save_universal(vector, path, {"norm": 2})
    with pytest.raises(
        InputError, match=r"vector\.norm must be at most the radius 0\.1.*; got 0\.25"
    ):
        save_universal(vector, path, SETTINGS | {"radius": 0.1})
    with pytest.raises(InputError, match=r"vector must be .*save_universal"):
        load_universal(path)
    save_universal(vector, path, SETTINGS)
    with pytest.raises(InputError, match=r"shape \(1, 1, 5, 5\), not \(1, 1, 4, 4\)"):
        load_universal(path, (1, 5, 5))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"vector must be .*save_universal"):
        load_universal(path)


@pytest.mark.parametrize(
    ("change", "radius", "message"),
    [
        (
            {"perturbation": torch.full((1, 1, 4, 4), 8.0)},
            10.0,
            "radius must be at most 1,.*; got 10.0",
        ),
        (
            {"perturbation": torch.full((1, 1, 4, 4), 0.5)},
            0.25,
            r"vector\.norm must be .*; got 0\.5",
        ),
        (
            {"perturbation": torch.full((1, 1, 4, 4), math.nan)},
            0.25,
            r"vector\.norm must be .*; got nan",
        ),
        ({"perturbation": torch.zeros(4, 4)}, 0.25, r"shape \(1, C, H, W\), not \(4, 4\)"),
    ],
    ids=["pixels up to 255", "too long", "not finite", "flat"],
)
def test_files_of_other_origin_are_refused(vector, tmp_path, change, radius, message):
    path = tmp_path / "v.safetensors"
    settings = f'{{"norm": "inf", "radius": {radius}}}'
    tensors = {name: value.contiguous() for name, value in (vars(vector) | change).items()}
    save_file(tensors, path, {"settings": settings})
    with pytest.raises(InputError, match=message):
        load_universal(path)
    save_file(change, path)
    with pytest.raises(InputError, match="save_universal"):
        load_universal(path)
