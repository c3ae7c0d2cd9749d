"""Classifiers whose boundaries have known curvatures, images before them, and an executor."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.executor import Executor
from robustness_geometry.attacks.universal import Universal
from robustness_geometry.types import Dataset, Network, Split

SHAPE = (1, 4, 4)
D = 16
CURVED = (2.0, 2.0, -2.5, -2.5)
SCALE = 3.0


def axes(seed: int = 0) -> torch.Tensor:
    """An orthonormal basis (d, d) off the pixels: the normal, the curved directions, flat ones."""
    drawn = torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.contiguous()


class Bent(nn.Module):
    """f = scale (t (1 + t / 2 + s_5 / 2) + sum_i curved_i s_i^2 / 2), with t = s_0.

    The s are the coordinates about the centre. Where s_1 ... s_4 are 0, the boundary is t = 0, the
    normal is the first axis, ||grad f|| = scale (1 + s_5 / 2), and the principal curvatures of the
    region f < 0 are curved_i / (1 + s_5 / 2) and zeros. The square of t and its product with s_5
    are what a projector that is not normalised leaves in the Hessian.
    """

    def __init__(self, curved=CURVED, *, seed: int = 0, scale: float = SCALE, order=None) -> None:
        super().__init__()
        rows = axes(seed)
        self.register_buffer("rows", rows if order is None else rows[list(order)])
        self.register_buffer("curved", torch.tensor(curved, dtype=torch.float64))
        self.scale = scale
        self.eval()

    def forward(self, images):
        s = (images.flatten(1) - 0.5) @ self.rows.T
        t, bent = s[:, 0], s[:, 1 : 1 + len(self.curved)]
        return (
            self.scale
            * (t * (1 + t / 2 + s[:, 5] / 2) + (self.curved * bent**2).sum(dim=1) / 2)[:, None]
        )


class Ball(nn.Module):
    """Class 0 inside the ball of that radius around the centre, class 1 outside."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.eval()

    def forward(self, images):
        return (images.flatten(1) - 0.5).square().sum(dim=1, keepdim=True) - self.radius**2


class Affine(nn.Module):
    """w'(x - centre) of weights (outputs, d); without a slope where the first pixel is high."""

    def __init__(self, weights, edge: float = math.inf) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.edge = edge
        self.eval()

    def forward(self, images):
        flat = images.flatten(1)
        values = (flat - 0.5) @ self.weights.T
        return torch.where(flat[:, :1] > self.edge, torch.ones_like(values), values)


def before(count: int, seed: int) -> Split:
    """Images before the boundary of Bent, at distances from 0.15 to 0.2, s_1 ... s_4 being 0."""
    s = (
        torch.rand(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        - 0.5
    )
    s[:, 0] = -0.175 + 0.05 * s[:, 0]
    s[:, 1:5] = 0
    s[:, 5:] *= 0.6
    return Split((0.5 + s @ axes()).view(count, *SHAPE), torch.arange(count) % 2)


def around(count: int, seed: int) -> Split:
    """Pairs of images on opposite sides of the centre."""
    drawn = (
        torch.rand(
            count // 2, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        - 0.5
    )
    return Split(0.5 + torch.cat([drawn, -drawn]), torch.arange(count) % 2)


def dataset(train: int = 8, test: int = 10, *, draw=before) -> Dataset:
    return Dataset("made up", draw(train, 1), draw(test, 2), ("near", "far"), (0.5,), (0.2,))


def slopes(split: Split) -> torch.Tensor:
    """||grad f|| / scale of Bent at the boundary points of its images, (n,)."""
    return 1 + (split.images.flatten(1) - 0.5) @ axes()[5] / 2


def first_axis(
    model, images, *, norm, radius, generator=None, labels=None, axis: int = 1
) -> Universal:
    """In place of Algorithm 4: one of the axes."""
    v = radius * axes()[axis].view(1, *SHAPE).to(images)
    none = torch.zeros(1, dtype=torch.int64)
    return Universal(v, torch.zeros(1, dtype=torch.float64), none, none, torch.tensor(False))


@pytest.fixture(scope="session")
def bent() -> SimpleNamespace:
    """What the tests make their networks and data of."""

    def network(*models: nn.Module, name: str = "small") -> Network:
        return Network(name, "made up", dict(enumerate(models)))

    return SimpleNamespace(
        affine=Affine,
        around=around,
        axes=axes,
        ball=Ball,
        curved=CURVED,
        d=D,
        dataset=dataset,
        maker=first_axis,
        model=Bent,
        network=network,
        scale=SCALE,
        shape=SHAPE,
        slopes=slopes,
    )


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    return Executor(
        accelerator="cpu", threads=1, progress=False, work=tmp_path_factory.mktemp("work")
    )
