import math

import pytest
import torch

from pipeline.evaluation import held_out
from robustness_geometry.checks import InputError
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import pretrained
from robustness_geometry.types import Network
from stages.semirandom.noise_regimes_example import Settings, noise_regimes_example


def test_regimes_of_an_affine_network(made, executor, looked_at):
    model, data = made.affine(), made.dataset(60)
    found = noise_regimes_example(
        made.network(model), data, Settings(samples=60, m=6, lines=3, resamples=200), executor
    )
    images = held_out(data, 60).images
    with torch.no_grad():
        distance = model(images)[:, 0].abs() / model[1].weight.norm()
    assert found.numbers["median_worst"].value == pytest.approx(
        float(distance.double().quantile(0.5)), rel=1e-6
    )
    assert found.numbers["median_worst (DeepFool)"].value == pytest.approx(
        1.02 * found.numbers["median_worst"].value
    )
    # Half of the lines meet the boundary within sqrt(d) / 0.674 of the distance.
    assert found.numbers["random / (sqrt(d) worst)"].value == pytest.approx(1 / 0.674, rel=0.3)
    assert found.numbers["median_semirandom - median_worst"].low > 0
    assert found.numbers["median_random - median_semirandom"].low > 0
    ratio = found.numbers["median_random"].value / found.numbers["median_semirandom"].value
    assert found.numbers["median_random / median_semirandom"].value == pytest.approx(ratio)
    assert found.numbers["random / worst"].value == pytest.approx(
        8 * found.numbers["random / (sqrt(d) worst)"].value
    )
    assert found.numbers["share_one_label"].value == 1
    assert found.numbers["share_one_label (DeepFool)"].value == 1
    assert found.numbers["alignment_worst"].value == pytest.approx(1, abs=1e-9)
    assert found.numbers["alignment_semirandom"].value == pytest.approx(1, abs=1e-6)
    assert len(found.tables["regimes"]) == 5
    assert found.tensors["norm_random"].shape == (1, 60)
    assert looked_at(found) == ["figure_5_4", "norms"]


def test_noise_that_never_fools_is_infinite(made, executor, looked_at):
    found = noise_regimes_example(
        made.network(made.ball(1e9)),
        made.dataset(6),
        Settings(samples=6, m=4, lines=2, resamples=50),
        executor,
    )
    assert found.numbers["median_random"].value == math.inf
    assert found.tables["regimes"]["failed"].iloc[0] == 6
    assert "share_one_label" not in found.numbers
    looked_at(found)


def test_no_semirandom_perturbation_is_longer_than_the_noise_along_its_line(executor):
    network = Network("nin", "digits", {0: pretrained("mnist5k_nin")})
    data = mnist5k(train_limit=10, test_limit=40)
    found = noise_regimes_example(
        network, data, Settings(samples=20, lines=2, resamples=50), executor
    )
    sizes = {name: found.tensors[f"norm_{name}"] for name in ("random", "semirandom", "worst")}
    assert bool((sizes["semirandom"] <= sizes["random"]).all())
    assert bool((sizes["worst"] <= sizes["semirandom"]).all())
    assert found.numbers["median_random - median_semirandom"].value > 0


def test_as_many_dimensions_as_pixels_are_refused(made):
    with pytest.raises(InputError, match=r"^m must be a whole number below d = 64; got 64"):
        Settings(m=64).check(made.dataset(4))
    Settings(m=63).check(made.dataset(4))


@pytest.mark.parametrize(("key", "value"), [("m", 1), ("samples", 0), ("lines", 0)])
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(InputError, match=f"^{key} must be .*got {value}"):
        Settings(**{key: value})
