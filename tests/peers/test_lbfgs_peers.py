"""The penalised attack against SciPy's L-BFGS-B with a search of its own over the constant."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from robustness_geometry.attacks import lbfgs
from robustness_geometry.norms import norms

COUNT, SEARCHES = 3, 8


def scipy_norm(model, image, target):
    """The norm of the smallest minimiser r of c ||r||^2 + J(x + r, t) in the box that reaches t."""
    origin = image.double().numpy().ravel()

    def objective(point, constant):
        leaf = torch.tensor(point, dtype=torch.float32).view_as(image)[None].requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(leaf), target[None])
        (gradient,) = torch.autograd.grad(loss, leaf)
        offset = point - origin
        value = loss.item() + constant * offset @ offset
        return value, gradient.double().numpy().ravel() + 2 * constant * offset

    low, high, smallest = 1e-4, 10.0, np.inf
    for _ in range(SEARCHES):
        constant = np.sqrt(low * high)
        box = [(0, 1)] * len(origin)
        found = minimize(
            objective,
            origin,
            (constant,),
            "L-BFGS-B",
            jac=True,
            bounds=box,
            options={"maxiter": 60},
        )
        with torch.no_grad():
            logits = model(torch.tensor(found.x, dtype=torch.float32).view_as(image)[None])
        if int(logits.argmax()) == int(target):
            low, smallest = constant, min(smallest, np.linalg.norm(found.x - origin))
        else:
            high = constant
    return smallest


def test_norms_are_scipys(model, images, labels):
    images, labels = images[:COUNT], labels[:COUNT]
    with torch.no_grad():
        targets = model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    expected = np.array([scipy_norm(model, x, t) for x, t in zip(images, targets, strict=True)])
    ours = lbfgs(model, images, clip=(0.0, 1.0), labels=labels, targets=targets)
    assert bool(ours.success.all())
    sizes = norms(ours.perturbations).numpy()
    assert sizes.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert (sizes <= 1.1 * expected).all()
