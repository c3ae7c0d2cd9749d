"""CURE's penalty against closed forms, its weight gradient, and its schedule."""

import copy
import math

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.training import Cure, Recipe, cure_penalty, train
from robustness_geometry.training.objectives import Step
from robustness_geometry.types import Split


class Linear(nn.Module):
    """Logits W x + b."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.eval()

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


class Loss(nn.Module):
    """Two logits whose cross-entropy at label 0 is a given function l of the image.

    They are f_0 = 0 and f_1 = log(exp(l) - 1).
    """

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images):
        other = self.function(images.flatten(1)).expm1().log()
        return torch.stack([torch.zeros_like(other), other], dim=1)


def smooth(seed=0, classes=3):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(27, classes),
    ]
    model = nn.Sequential(*layers).double()
    model(torch.rand(20, 1, 5, 5, dtype=torch.float64))  # statistics of their own
    return model.eval()


def batch(count=6, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 5, 5, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (count,), generator=generator)


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("direction", ["sign", "gradient"])
@pytest.mark.parametrize("h", [0.1, 1.5])
def test_linear_logits_give_the_change_of_the_probabilities(direction, h):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 25, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    images, labels = batch(classes=4)
    points = images.flatten(1)
    excess = (points @ weight.T + bias).softmax(dim=1) - nn.functional.one_hot(labels, 4)
    gradient = excess @ weight
    z = unit(gradient.sign() if direction == "sign" else gradient)
    moved = ((points + h * z) @ weight.T + bias).softmax(dim=1) - nn.functional.one_hot(labels, 4)
    wanted = ((moved - excess) @ weight).square().sum(dim=1).mean()
    found = cure_penalty(Linear(weight, bias), images, labels, h=h, direction=direction)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-10, atol=0)


def test_a_quadratic_loss_gives_h_squared_times_the_norm_of_a_z_squared():
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(25, 25, generator=generator, dtype=torch.float64) / 5
    matrix, slope = root @ root.T, torch.randn(25, generator=generator, dtype=torch.float64)
    model = Loss(lambda x: 0.5 * ((x @ matrix) * x).sum(dim=1) + x @ slope + 20)
    images, _ = batch()
    z = unit((images.flatten(1) @ matrix + slope).sign())
    wanted = (0.3**2 * (z @ matrix).square().sum(dim=1)).mean()
    found = cure_penalty(model, images, torch.zeros(6, dtype=torch.long), h=0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)


def test_the_weight_gradient_is_right_and_goes_through_both_gradients():
    model, (images, labels) = smooth(), batch()
    weights = dict(model.named_parameters())

    def penalty(*values):
        given = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(
            Penalty(model, images, labels), {f"model.{k}": v for k, v in given.items()}
        )

    assert torch.autograd.gradcheck(
        penalty, tuple(p.detach().clone().requires_grad_() for p in weights.values())
    )
    gradients = torch.autograd.grad(
        cure_penalty(model, images, labels, h=0.5), list(weights.values())
    )
    assert all(
        float(g.norm()) > 1e-8
        for g, name in zip(gradients, weights, strict=True)
        if name != "0.bias"
    )


class Penalty(nn.Module):
    def __init__(self, model, images, labels):
        super().__init__()
        self.model, self.images, self.labels = model, images, labels

    def forward(self):
        return cure_penalty(self.model, self.images, self.labels, h=0.5)


def test_images_do_not_enter_each_others_terms():
    model, (images, labels) = smooth(), batch()
    alone = torch.stack(
        [cure_penalty(model, images[i : i + 1], labels[i : i + 1], h=0.5) for i in range(6)]
    )
    whole = cure_penalty(model, images, labels, h=0.5)
    torch.testing.assert_close(whole, alone.mean())
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(cure_penalty(model, images[order], labels[order], h=0.5), whole)


def test_one_logit_whose_sign_decides_counts_as_two():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 1)).double().eval()
    images, labels = batch(classes=2)
    weight, bias = (p.detach() for p in model[1].parameters())
    two = Linear(
        torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    )
    torch.testing.assert_close(
        cure_penalty(model, images, labels, h=1), cure_penalty(two, images, labels, h=1)
    )


def test_a_vanishing_gradient_costs_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).double().eval()
    nn.init.zeros_(model[1].weight)
    penalty = cure_penalty(model, *batch(), h=1.0)
    assert float(penalty.detach()) == 0
    assert all(
        g.isfinite().all()
        for g in torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)[:1]
    )


def test_model_and_images_stay_as_they_were():
    model, (images, labels) = smooth().requires_grad_(False), batch()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        cure_penalty(model, images, labels, h=0.5)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True)
    )
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": 0}, "h must be a finite number > 0.*; got 0"),
        ({"h": -1.5}, r"h must be .*; got -1\.5"),
        ({"h": math.nan}, "h must be .*; got nan"),
        (
            {"h": 1, "direction": "random"},
            "direction must be one of sign, gradient.*; got 'random'",
        ),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        cure_penalty(smooth(), *batch(), **options)


def test_batches_that_cannot_be_used_are_refused():
    images, labels = batch()
    with pytest.raises(InputError, match=r"model must be in evaluation mode .*; got training mode"):
        cure_penalty(smooth().train(), images, labels, h=1)
    with pytest.raises(InputError, match="images must be at least one image; got nothing"):
        cure_penalty(smooth(), images[:0], labels[:0], h=1)
    with pytest.raises(InputError, match=r"labels must be .*; got torch\.int64 \(5,\)"):
        cure_penalty(smooth(), images, labels[:5], h=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "lambda must be a finite number >= 0.*; got -1"),
        ({"h": 0}, "h must be .*; got 0"),
        ({"ramp": -1}, "ramp must be .*; got -1"),
        ({"direction": "both"}, "direction must be .*; got 'both'"),
    ],
)
def test_objectives_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Cure(**options)


def test_a_ramp_longer_than_the_training_is_refused_before_any_work():
    data = Split(*batch())
    with pytest.raises(InputError, match=r"ramp must be at most training\.epochs=3.*; got 5"):
        train(smooth(), data, Recipe(epochs=3), objective=Cure(ramp=5))


def test_h_grows_linearly_and_then_stays():
    cure = Cure(h=1.5, ramp=5)
    assert [cure.h_at(epoch) for epoch in (0, 1, 2.5, 5, 19.9)] == pytest.approx(
        [0, 0.3, 0.75, 1.5, 1.5]
    )
    assert Cure(h=1.5, ramp=0).h_at(0) == 1.5


def test_the_two_terms_are_taken_in_their_own_modes():
    model, fresh, (images, labels) = smooth(), smooth().train(), batch()
    entropy = float(
        nn.functional.cross_entropy(fresh(images), labels).detach()
    )  # moves the statistics of batch norm once
    penalty = float(cure_penalty(fresh.eval(), images, labels, h=0.75).detach())
    loss = Cure(weight=4, h=1.5, ramp=2).loss(
        Step(model.train(), images, labels, 1.0, torch.Generator())
    )
    assert float(loss.parts["cross_entropy"].detach()) == pytest.approx(entropy)
    assert float(loss.parts["penalty"].detach()) == pytest.approx(penalty)
    assert float(loss.total.detach()) == pytest.approx(entropy + 4 * penalty)
    assert all(layer.training for layer in model.modules())
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, dict(fresh.named_buffers())[name])


def test_a_network_without_modes_needs_one_forward_pass_less_and_gives_the_same_loss():
    torch.manual_seed(4)
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)]
    plain, (images, labels) = nn.Sequential(*layers).double().eval(), batch()
    wrapped = nn.Sequential(copy.deepcopy(plain), nn.Dropout(0.0)).eval()
    passes, losses = [], []
    for model in (plain, wrapped):
        calls: list[int] = []
        handle = model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = Cure(h=1.0, ramp=0).loss(Step(model.train(), images, labels, 1.0, torch.Generator()))
        handle.remove()
        passes.append(len(calls))
        losses.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss.total, list(model.parameters()))]
            )
        )
    assert passes == [2, 3]
    torch.testing.assert_close(*losses)


def test_a_weight_of_zero_is_plain_training():
    data, recipe = Split(*batch(30)), Recipe(epochs=2, batch_size=10)
    plain = train(smooth(), data, recipe)
    cure = train(smooth(), data, recipe, objective=Cure(weight=0, ramp=1))
    assert all(torch.equal(a, cure.state_dict[name]) for name, a in plain.state_dict.items())
    assert cure.history["penalty"] == [0, 0]


def test_training_lowers_the_penalty_and_its_curves_say_so():
    images, labels = batch(40)
    recipe = Recipe(epochs=8, batch_size=20, optimiser="adam", learning_rate=0.01, weight_decay=0)
    result = train(
        smooth(), Split(images, labels), recipe, objective=Cure(weight=10, h=1.0, ramp=1)
    )
    plain = train(smooth(), Split(images, labels), recipe).model
    penalties = [
        float(cure_penalty(model, images, labels, h=1.0).detach())
        for model in (result.model, plain)
    ]
    assert penalties[0] < penalties[1] / 2
    assert set(result.history) == {"train_loss", "train_error", "cross_entropy", "penalty"}
    total = [
        c + 10 * p
        for c, p in zip(result.history["cross_entropy"], result.history["penalty"], strict=True)
    ]
    assert result.history["train_loss"] == pytest.approx(total)
