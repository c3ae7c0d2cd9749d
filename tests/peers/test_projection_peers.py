import math

import numpy as np
import pytest
import torch
from adv_lib.utils.projections import l1_ball_euclidean_projection
from art.utils import projection

from robustness_geometry.norms import project

RADIUS = 1.5


@pytest.fixture(params=[0.01, 1.0], ids=["inside", "outside"])
def vectors(request):
    generator = torch.Generator().manual_seed(0)
    return request.param * torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_projection_is_that_of_art(vectors, p):
    expected = projection(vectors.numpy(), RADIUS, np.inf if math.isinf(p) else p, suboptimal=False)
    np.testing.assert_allclose(project(vectors, RADIUS, p).numpy(), expected, atol=1e-12)


def test_l1_projection_is_that_of_adv_lib(vectors):
    expected = l1_ball_euclidean_projection(vectors.flatten(1), RADIUS).view_as(vectors)
    torch.testing.assert_close(project(vectors, RADIUS, 1.0), expected, atol=1e-12, rtol=0)
