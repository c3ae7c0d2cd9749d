import pytest
import torch
from torch import nn

from benchmarks.counting import count_passes

IMAGES, CLASSES = 7, 10


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    ).eval()


@pytest.fixture
def images():
    return torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def forward_only(model, images):
    with torch.no_grad():
        model(images)


def class_by_class(model, images):
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    for k in range(CLASSES):
        torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)


def batched_gradients(model, images):
    leaf = images.clone().requires_grad_()
    directions = torch.eye(CLASSES)[:, None].expand(CLASSES, IMAGES, CLASSES)
    torch.autograd.grad(model(leaf), leaf, directions, is_grads_batched=True)


def copies_of_the_images(model, images):
    leaf = images.repeat_interleave(CLASSES, 0).requires_grad_()
    torch.autograd.grad(model(leaf), leaf, torch.eye(CLASSES).repeat(IMAGES, 1))


def one_leaf_twice(model, images):
    leaf = images.clone().requires_grad_()
    model(leaf).sum().backward()
    model(leaf).sum().backward()


def no_leaf(model, images):
    shift = torch.zeros_like(images, requires_grad=True)
    model(images + shift).sum().backward()


def batched_jacobian(model, images):
    torch.func.jacrev(lambda batch: model(batch).sum(0))(images)


def jacobian_of_each(model, images):
    torch.func.vmap(torch.func.jacrev(lambda image: model(image[None])[0]))(images)


def gradient_of_each(model, images):
    torch.func.vmap(torch.func.grad(lambda image: model(image[None])[0].sum()))(images)


@pytest.mark.parametrize(
    ("algorithm", "forward", "backward"),
    [
        (forward_only, 1, 0),
        (class_by_class, 1, CLASSES),
        (batched_gradients, 1, CLASSES),
        (copies_of_the_images, CLASSES, CLASSES),
        (one_leaf_twice, 2, 2),
        (no_leaf, 1, 1),
        (batched_jacobian, 1, CLASSES),
        (jacobian_of_each, 1, CLASSES),
        (gradient_of_each, 1, 1),
    ],
)
def test_counts_are_exact(model, images, algorithm, forward, backward):
    with count_passes(model) as passes:
        algorithm(model, images)
    assert (passes.forward, passes.backward) == (forward * IMAGES, backward * IMAGES)


def test_gradients_are_unchanged(model, images):
    leaf = images.clone().requires_grad_()
    plain = torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)[0]
    with count_passes(model):
        counted = torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)[0]
    assert torch.equal(plain, counted)


def test_nothing_is_counted_outside_the_context(model, images):
    with count_passes(model) as passes:
        pass
    class_by_class(model, images)
    assert (passes.forward, passes.backward) == (0, 0)
    assert not model._forward_pre_hooks


def test_hooks_are_removed_after_an_error(model):
    with pytest.raises(RuntimeError), count_passes(model):
        model(torch.zeros(1, 3, 3))
    assert not model._forward_pre_hooks
