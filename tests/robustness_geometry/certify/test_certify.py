import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from robustness_geometry.attacks import deepfool, pgd
from robustness_geometry.certify import bound_cost, exact_distance, lower_bounds
from robustness_geometry.certify.hyperplanes import least
from robustness_geometry.certify.intermediate import Network
from robustness_geometry.certify.reading import read
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import mnist5k
from robustness_geometry.geometry import boundary_points
from robustness_geometry.models import pretrained, resnet18
from robustness_geometry.norms import dual, hyperplane_step, norms, project
from robustness_geometry.types import predict


def dense(*widths, seed=0, gain=1.5):
    """A fully connected ReLU network on images (1, 1, widths[0]), float64."""
    torch.manual_seed(seed)
    layers = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double().eval()
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
            nn.init.normal_(layer.bias, std=0.3)
    return model


def pixels(count, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", [1, 1.5, 2, math.inf])
def test_the_bound_of_an_affine_network_is_its_distance(norm):
    model, images = dense(6, 4), pixels(5, 1, 2, 3)
    weight, logits = model[1].weight.detach(), model(images).detach()
    own = logits.argmax(dim=1)
    gaps = logits.gather(1, own[:, None]) - logits
    sizes = norms((weight[own][:, None] - weight).flatten(0, 1), dual(norm)).view(5, 4)
    expected, rivals = (gaps / sizes).nan_to_num(math.inf).min(dim=1)
    found = lower_bounds(model, images, norm=norm, evaluations=12)
    assert bool((found.radii <= expected).all())
    torch.testing.assert_close(found.radii, expected, rtol=0.02, atol=0)
    assert found.rivals.tolist() == rivals.tolist()
    if norm in (2, math.inf):
        exact = exact_distance(model, images, norm=norm)
        assert set(exact.status) == {"exact"}
        torch.testing.assert_close(exact.upper, expected, rtol=1e-6, atol=0)
        assert predict(model, images + (exact.points - images) * (1 + 1e-6)).ne(own).all()


def line(*coefficients, offset):
    """The sign of a linear function of the pixels."""
    layer = nn.Linear(len(coefficients), 1).double()
    layer.weight.data = torch.tensor([coefficients], dtype=torch.float64)
    layer.bias.data = torch.tensor([offset], dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.mark.parametrize(
    ("norm", "free", "boxed"),
    [(1, 0.8 / 3, 0.6), (2, 0.8 / math.sqrt(10), math.sqrt(0.26)), (math.inf, 0.2, 0.5)],
)
def test_the_box_stands_in_the_way_of_the_nearest_point(norm, free, boxed):
    """3 x + y = 3.5 seen from (0.9, 0): in [0, 1], x ends at 1 and y must do the rest."""
    model = line(3.0, 1.0, offset=-3.5)
    image = torch.tensor([0.9, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    for clip, distance in ((None, free), ((0, 1), boxed)):
        low = lower_bounds(model, image, norm=norm, clip=clip, evaluations=12).radii.item()
        assert 0.98 * distance <= low <= distance
        if norm != 1:
            found = exact_distance(model, image, norm=norm, clip=clip)
            assert found.status == ("exact",)
            assert found.upper.item() == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_the_exact_distance_in_a_box_is_that_of_the_grid(norm, seed):
    model, images = dense(2, 6, 4, seed=seed, gain=4.0), pixels(4, 1, 1, 2, seed=seed)
    side = torch.linspace(0, 1, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    labels = predict(model, grid)
    found = exact_distance(model, images, norm=norm, clip=(0, 1))
    for image, own, low, high, status in zip(
        images, found.labels, found.lower, found.upper, found.status, strict=True
    ):
        nearest = norms((grid - image)[labels != own], norm).min()
        assert status == "exact"
        assert low <= nearest <= high + 0.003


@pytest.mark.parametrize(("norm", "distance"), [(2, 0.9), (math.inf, 0.7)])
def test_two_relus_by_hand(norm, distance):
    """ReLU(x) + ReLU(y) = 1 seen from (-0.5, 0.1): (-0.5, 1) in l_2, (0.2, 0.8) in l_inf."""
    model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.ReLU(), line(1.0, 1.0, offset=-1.0)[1])
    image = torch.tensor([-0.5, 0.1], dtype=torch.float64).view(1, 1, 1, 2)
    found = exact_distance(model.eval(), image, norm=norm)
    assert found.status == ("exact",)
    assert found.upper.item() == pytest.approx(distance, rel=1e-6)
    assert lower_bounds(model, image, norm=norm).radii.item() <= distance


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_max_pooling_by_brute_force(norm):
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 3, (1, 2), padding=(0, 1)), nn.MaxPool2d((1, 2), 1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6, 3)).double().eval()
    side = torch.linspace(-2, 3, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).view(-1, 1, 1, 2)
    labels, images = predict(model, grid), pixels(8, 1, 1, 2)
    found = lower_bounds(model, images, norm=norm)
    for image, own, radius in zip(images, found.labels, found.radii, strict=True):
        nearest = norms((grid - image)[labels != own], norm).min()
        assert 0.3 * nearest < radius <= nearest


@pytest.mark.parametrize("norm", [2, math.inf])
def test_no_sampled_point_behind_a_plane_is_below_the_least_value(norm):
    generator = torch.Generator().manual_seed(0)
    rows, normal = (torch.randn(k, 4, generator=generator).double() for k in (30, 1))
    x, radius = torch.zeros(1, 4).double(), torch.ones(1).double()
    steps = project(4 * torch.randn(40000, 4, generator=generator).double(), 1.0, norm)
    steps *= torch.rand(40000, 1, generator=generator).double()[:, :1] ** 0.1
    for height in (0.2, 0.8):
        plane = (normal, height * norms(normal, dual(norm)))
        behind = steps[steps @ normal[0] + plane[1] <= 0]
        options = {"images": x, "radii": radius, "norm": norm, "box": None}
        none = torch.zeros(1, 30).double()
        whole, part = (least(rows[None], none, plane=p, **options)[0] for p in (None, plane))
        reached = (behind @ rows.T).amin(dim=0)
        assert bool((part <= reached).all())
        assert bool((whole <= part).all())
        assert (part - reached).abs().mean() < 0.5 * (whole - reached).abs().mean()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_parts_of_balls_raise_the_bound_and_keep_it_below_the_distance(norm):
    model, images = dense(6, 8, 6, 3, seed=5), pixels(3, 1, 2, 3)
    exact = exact_distance(model, images, norm=norm)
    balls, parts = (lower_bounds(model, images, norm=norm, cuts=cuts).radii for cuts in (0, 20))
    assert bool((balls <= parts).all())
    assert bool((parts <= exact.upper * (1 + 1e-9)).all())
    assert parts.mean() > 1.1 * balls.mean()


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.sampled_from([2.0, math.inf]), st.booleans())
def test_bounds_and_distances_come_in_their_order(seed, norm, deep):
    model = dense(4, 4, 3, 3, seed=seed) if deep else dense(6, 6, 3, seed=seed)
    images = pixels(8, 1, 1, model[1].in_features, seed=seed)
    try:
        near = boundary_points(model, images)
    except InputError:  # all units are dead at all images
        reject()
    images, near = images[near.success], near.found()
    low, exact = (
        lower_bounds(model, images, norm=norm, steps=2, evaluations=3),
        exact_distance(model, images, norm=norm),
    )
    assert set(exact.status) <= {"exact"}
    assert bool((low.radii <= exact.upper * (1 + 1e-9)).all())
    upper = norms(near.perturbations, norm)
    assert bool((exact.lower <= upper * (1 + 1e-6)).all())
    if norm == 2:
        first = norms(deepfool(model, images).perturbations)
        assert bool((upper <= first * (1 + 1e-6)).all())
    beyond = images + (exact.points - images) * (1 + 1e-5)
    assert bool((predict(model, beyond) != exact.labels).any()) or not len(images)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_attacks_fool_outside_the_exact_distance_and_not_inside(norm):
    model, images = dense(16, 8, 6, 4, seed=8), pixels(6, 1, 4, 4)
    exact = exact_distance(model, images, norm=norm)
    assert set(exact.status) == {"exact"}
    generator = torch.Generator().manual_seed(0)
    for image, label, low, point in zip(
        images, exact.labels, exact.lower, exact.points, strict=True
    ):
        noise = torch.randn(300, 1, 4, 4, generator=generator, dtype=torch.float64)
        steps = project(noise, low.item() * (1 - 1e-9), norm)
        assert predict(model, image + steps).eq(label).all()
        inside = pgd(model, image[None], norm=norm, eps=low.item() * (1 - 1e-6), clip=None)
        assert not bool(inside.success.any())
        assert predict(model, (image + (point - image) * (1 + 1e-4))[None]).item() != label


class Residual(nn.Module):
    """Sums, differences, products and quotients, concatenation, views and functions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.last = nn.Linear(8, 3)
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))

    def forward(self, x):
        x = self.first((x - self.mean) / 0.3)
        y = 2 * functional.relu(x) + self.second(functional.leaky_relu(x, 0.2)) - x
        y = torch.cat([y, -x], dim=1)
        y = functional.max_pool2d(functional.avg_pool2d(y, 2), 2)
        y = functional.dropout(y, training=self.training)
        return self.last(functional.adaptive_avg_pool2d(y, 1).view(y.size(0), -1))


def front(*layers, out):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(out, 3))


torch.manual_seed(0)
NETWORKS = {
    "strided convolution": front(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), out=48),
    "same padding": front(nn.Conv2d(2, 3, 3, padding="same", dilation=2), nn.ReLU(), out=192),
    "groups": front(nn.Conv2d(2, 4, 2, groups=2, bias=False), nn.ReLU(), out=196),
    "batch norm": front(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), out=144),
    "max pooling": front(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), out=64),
    "average": front(nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True), nn.LeakyReLU(0.1), out=32),
    "means": front(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Dropout(), out=5),
    "two in a row": front(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 6, 1), nn.ReLU(), out=384
    ),
    "pooled, then in a row": front(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.LeakyReLU(),
        out=8,
    ),
    "vectors": nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)
    ),
    "residual": Residual(),
    "resnet18": resnet18(
        channels=2, size=(8, 8), classes=3, mean=(0.5, 0.5), std=(0.3, 0.3), width=2
    ),
}


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_sampled_point_leaves_the_bounds(name, norm):
    torch.manual_seed(2)
    model = NETWORKS[name].double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2)
    model, image = model.eval(), pixels(1, 2, 8, 8)
    radius = {1: 2.0, 2: 0.4, math.inf: 0.03}[norm] / (4 if name == "resnet18" else 1)
    network = Network(read(model, (2, 8, 8)))
    with torch.no_grad():
        region = network.region(image, torch.tensor([radius], dtype=torch.float64), norm, None, 2)
        lower, upper = network._rows(len(network.nodes) - 1, region, 2)
        noise = torch.randn(1500, 2, 8, 8, dtype=torch.float64)
        noise[:500, :, 2:] = 0
        steps = radius * noise / norms(noise, norm)[:, None, None, None]
        # Steps along the gradients of the logits go farther than random ones.
        steps[:250] = _steepest(model, image, radius, norm, 250)
        logits = model(image + (1 - 1e-9) * steps)
    assert bool((logits >= lower).all())
    assert bool((logits <= upper).all())
    exact = model(image)
    reached = logits.amax(dim=0) - logits.amin(dim=0)
    if name != "resnet18" and norm != 1:  # few steps sampled in l_1 go far
        assert bool((upper - lower <= {2: 8, math.inf: 3}[norm] * reached).all())
    assert bool((exact >= lower).all())


def _steepest(model, image, radius, norm, count):
    found = []
    with torch.enable_grad():
        for k in range(3):
            x = image.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x)[0, k], x)
            step = hyperplane_step(torch.ones(1).double(), slope, norm)
            found += [radius * step / norms(step, norm), -radius * step / norms(step, norm)]
    return torch.cat(found).repeat(count // 6 + 1, 1, 1, 1)[:count]


class Branching(nn.Module):
    """Asks for a value while it runs, which no trace can answer."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Sigmoid(), "'1.0' of type Sigmoid"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "'1.0' of type Conv2d"),
        (nn.LeakyReLU(2.0), "'1.0' of type LeakyReLU"),
        (nn.Softmax(dim=1), "'1.0' of type Softmax"),
        (nn.BatchNorm2d(1, track_running_stats=False), "'1.0' of type BatchNorm2d"),
        (Branching(), "'1.0' of type Branching"),
    ],
)
def test_a_refusal_names_the_layer(layer, text):
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sequential(layer), nn.Flatten()).eval()
    for function in (lower_bounds, exact_distance):
        with pytest.raises(InputError, match=text) as caught:
            function(model, torch.rand(1, 1, 6, 6))
        assert "\n" not in str(caught.value)


def test_the_exact_distance_refuses_what_is_no_chain_of_relus():
    with pytest.raises(InputError, match="model must be a chain of affine layers"):
        exact_distance(NETWORKS["residual"].double(), pixels(1, 2, 8, 8))
    with pytest.raises(InputError, match="norm must be 2 or inf"):
        exact_distance(dense(4, 3), pixels(1, 1, 2, 2), norm=1)


def test_wrong_labels_have_distance_zero_and_empty_batches_pass():
    model, images = dense(4, 5, 3), pixels(3, 1, 2, 2)
    wrong = (predict(model, images) + 1) % 3
    assert lower_bounds(model, images, labels=wrong).radii.tolist() == [0, 0, 0]
    found = exact_distance(model, images, labels=wrong)
    assert found.upper.tolist() == [0, 0, 0]
    assert found.status == ("exact",) * 3
    assert len(lower_bounds(model, images[:0])) == len(exact_distance(model, images[:0])) == 0


def test_a_search_cut_short_is_a_bracket():
    model, images = dense(64, 40, 40, 10, seed=1), pixels(1, 1, 8, 8)
    found = exact_distance(model, images, time_limit=1e-3)
    assert found.status == ("bracket",)
    assert 0 <= found.lower.item() < found.upper.item() < math.inf


def test_a_limit_on_subproblems_gives_the_same_result_on_every_run():
    model, images = dense(64, 60, 60, 10, seed=1, gain=2), pixels(1, 1, 8, 8)
    found = [exact_distance(model, images, time_limit=None, nodes=60) for _ in range(2)]
    assert found[0].status == ("bracket",)
    assert 60 <= found[0].nodes.item() < 60 + 2 * 128
    assert torch.equal(found[0].lower, found[1].lower)
    assert torch.equal(found[0].points, found[1].points)
    with pytest.raises(InputError, match="nodes must be"):
        exact_distance(model, images, nodes=0)


def test_the_cost_counts_rows_times_layers():
    model = dense(16, 8, 8, 4)
    layers = (16 + 16 + 128, 8 + 64, 8 + 32)  # ReLUs and reshapings cost one operation a unit
    rows = 2 * 8 * 16 + 2 * 8 * (layers[0] + 8 + 16)  # the first layer's own product is made once
    options = {"steps": 0, "evaluations": 1, "cuts": 0}
    assert bound_cost(model, (1, 4, 4), **options) == rows + 3 * sum(layers)
    options = {"steps": 1, "evaluations": 2, "cuts": 3}
    assert bound_cost(model, (1, 4, 4), **options) == 5 * rows + 4 * 9 * sum(layers)


def test_units_that_share_no_pixel_cost_one_pass():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
    whole = bound_cost(model, (1, 8, 8), steps=0, evaluations=1, cuts=0)
    assert bound_cost(model, (1, 8, 8), steps=0, evaluations=1, cuts=0, enough=1.0) < whole
    apart = nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).eval()
    assert bound_cost(apart, (1, 8, 8), steps=0, evaluations=1, cuts=0) < 0.2 * whole


def test_a_constant_network_has_no_boundary():
    model = line(0.0, 0.0, offset=1.0)
    assert exact_distance(model, torch.rand(1, 1, 1, 2).double()).status == ("unresolved",)
    assert lower_bounds(model, torch.rand(1, 1, 1, 2).double()).radii.item() > 1


@pytest.mark.parametrize(("name", "share"), [("mnist5k_fc500_150_10", 0.5), ("mnist5k_lenet", 0.1)])
def test_the_bounds_of_packaged_networks_are_a_share_of_the_distance(name, share):
    model, images = pretrained(name), mnist5k(test_limit=200).test.images[:1]
    near = norms(boundary_points(model, images).perturbations)
    found = lower_bounds(model, images, steps=0, evaluations=2)
    assert bool((found.radii <= near).all())
    assert (found.radii / near).mean() > share
