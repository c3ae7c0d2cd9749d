"""Figures 8.2 and 8.9: eigenvalues of the loss's Hessian before and after fine-tuning.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Sections 8.2 and 8.5.2.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import (
    Estimate,
    Statistic,
    difference,
    maximum,
    mean,
    median,
    ratio_of_means,
    stack,
)
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.loss_hessian import (
    HessianSettings,
    powers_of_seeds,
    profiles_of_seeds,
    smoothed_of_seeds,
)
from pipeline.tables import interval
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import default_h, hessian_vector_products
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Dataset, Images, Network, class_logits

__all__ = ["SECTION", "Settings", "logit_curvatures", "loss_hessian_profile"]

SECTION = "Section 8.2, Figures 8.2 and 8.9"

NETWORKS = ("original", "deepfool", "cure")
LARGE = 0.1
"""An eigenvalue is large from this share of the largest absolute value on."""

DRAWS = 16
"""Random directions behind the Frobenius norm of a logit difference's Hessian."""


@dataclass(frozen=True)
class Settings(HessianSettings):
    """What to measure, beyond the settings of the Hessians.

    Attributes:
        logit_samples: number of images, at least 2, on which the exact Hessian of a logit
            difference is compared with the one of differences over h = 1.
        smoothing_draws: number of points around each image, at least 1, over which the smoothed
            Hessian is averaged; it is taken on ``profile_samples`` images of all training seeds.
    """

    logit_samples: int = 10
    smoothing_draws: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("logit_samples", self.logit_samples, minimum=2)
        check_count("smoothing_draws", self.smoothing_draws)


def loss_hessian_profile(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure the sorted eigenvalues of the loss's Hessian in the input, averaged over images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and Hessians.

    Returns:
        Of ``original``, ``deepfool`` and ``cure``, as means over the images: ``power_*``, the
        largest eigenvalue by power iteration; ``smoothed_*``, that of the Hessian of the loss
        averaged over noise, which is symmetric; and on the images with whole Hessians
        ``lambda_max_*``, ``squares_*`` (the sum of the squared eigenvalues) and ``share_large_*``
        (the share of eigenvalues of at least a tenth of the largest size); as medians
        ``power_median_*``, ``smoothed_median_*``, ``lambda_max_median_*`` and ``relative_*``
        (||H||_F / ||g||). Ratios of the means. ``exact_logit_hessian`` (the largest) and
        ``finite_logit_hessian`` (the mean): Frobenius norms of the Hessian of a logit difference,
        exactly and over h = 1.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    found = {name: profiles_of_seeds(studies, name) for name in NETWORKS}
    spectra = {name: values["eigenvalues"] for name, values in found.items()}
    samples = {
        key: values
        for name in NETWORKS
        for key, values in _sizes(name, spectra[name], found[name]["gradient"]).items()
    }
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    powers = {f"power {name}": powers_of_seeds(studies, name)["power"] for name in NETWORKS}
    smoothed = {
        f"smoothed {name}": smoothed_of_seeds(studies, name, settings.smoothing_draws)["smoothed"]
        for name in NETWORKS
    }
    for size, values in {"power": powers, "smoothed": smoothed}.items():
        statistics = _power_statistics(size)
        numbers |= measured(paired_bootstrap(values, statistics, resamples=settings.resamples))
    numbers |= _logits(studies[: settings.profile_seeds])
    curves = {name: values.mean(dim=(0, 1)) for name, values in spectra.items()}
    return Findings(
        numbers=numbers,
        tables={"profile": _table(numbers), "eigenvalues": _eigenvalues(curves)},
        figures={"figure_8_9": _figure(network, curves)},
        notes=[*notes(studies), *_notes(studies, spectra, samples, powers)],
    )


def _notes(
    studies: Sequence[CureStudy[Settings]],
    spectra: Mapping[str, Tensor],
    samples: Mapping[str, Tensor],
    powers: Mapping[str, Tensor],
) -> list[str]:
    settings = studies[0].settings
    h = settings.curvature_h or default_h(studies[0].test.images[0].numel())
    flat = sum(int(samples[f"share_large {name}"].isnan().sum()) for name in NETWORKS)
    negative = sum(int((values < 0).sum()) for values in powers.values())
    seeds, count = spectra["cure"].shape[:2]
    return [
        "Hessians of the cross-entropy at the true label in the basis of the pixels, by "
        f"{settings.scheme} differences over h = {h:.4g} in pixel l2: whole ones on {count} "
        f"held-out images of {seeds} training seed(s); power iteration with "
        f"{settings.power_steps} steps on {powers['power cure'].shape[1]} images of "
        f"{len(studies)}.",
        "A matrix of such differences is not symmetric, as the gradient of a network of ReLUs "
        "jumps, and the eigenvalues of its symmetric part depend on the basis and on h. Power "
        "iteration finds a direction v that Hv keeps, so that its eigenvalue is the change of the "
        f"gradient along v itself; it is below 0 in {negative} cases. The loss averaged over noise "
        f"of length h has a Hessian (smoothed): power iteration on the mean of "
        f"{settings.smoothing_draws} draws, on {count} images of {len(studies)} training seed(s).",
        "The loss of an image that a network is sure of hardly bends: the means hang on few "
        "images, and the medians can say the opposite. ||H||_F / ||g|| tells how far the loss is "
        f"from linear whatever its size. In {flat} cases of an image and network the Hessian is "
        "zero to the last digit; they are left out of the shares of large eigenvalues.",
        "The exact Hessian of the next minus the predicted logit is taken on "
        f"{settings.logit_samples} images along {DRAWS} random directions.",
    ]


def _sizes(name: str, spectra: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """Name -> (seeds, n) sizes of spectra (seeds, n, d), the largest eigenvalue first.

    The norms of the loss's gradients (seeds, n) make one of them relative.
    """
    sizes = spectra.abs()
    largest = sizes.amax(dim=-1, keepdim=True)
    large = (sizes >= LARGE * largest).double().mean(dim=-1)
    squares = spectra.square().sum(dim=-1)
    return {
        f"lambda_max {name}": spectra[..., 0],
        f"squares {name}": squares,
        f"share_large {name}": valid(large, largest[..., 0] > 0),
        f"relative {name}": valid(squares.sqrt() / gradients, gradients > 0),
    }


def _statistics() -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for name in NETWORKS:
        numbers |= {
            f"{size}_{name}": mean(f"{size} {name}")
            for size in ("lambda_max", "squares", "share_large")
        }
        numbers[f"lambda_max_median_{name}"] = median(f"lambda_max {name}")
        numbers[f"relative_{name}"] = median(f"relative {name}")
    for name in NETWORKS[1:]:
        numbers[f"squares_original - squares_{name}"] = difference(
            "squares original", f"squares {name}"
        )
    return numbers | _ratios("lambda_max")


def _power_statistics(size: str) -> dict[str, Statistic]:
    numbers = {f"{size}_{name}": mean(f"{size} {name}") for name in NETWORKS}
    numbers |= {f"{size}_median_{name}": median(f"{size} {name}") for name in NETWORKS}
    return numbers | _ratios(size)


def _ratios(size: str) -> dict[str, Statistic]:
    """The ratios of the means of a size on two networks."""
    pairs = (("deepfool", "original"), ("cure", "original"), ("cure", "deepfool"))
    return {
        f"{size}_{first} / {size}_{second}": ratio_of_means(f"{size} {first}", f"{size} {second}")
        for first, second in pairs
    }


def logit_curvatures(
    model: Classifier, images: Images, *, h: float, generator: Generators = None
) -> dict[str, Tensor]:
    """The Frobenius norm of the Hessian of the next minus the predicted logit.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        h: step of the differences, in pixel l2.
        generator: one for the batch or one per image.

    Returns:
        ``exact`` and ``finite`` (N,): sqrt(mean ||H z||^2) over normal z, with exact products H z
        and with differences of gradients over ``h``.
    """
    with torch.no_grad():
        labels, targets = class_logits(model(images)).topk(2, dim=1).indices.unbind(dim=1)
    vectors = normal(images.new_empty(len(images), DRAWS, *images.shape[1:]), generator)
    products = partial(
        hessian_vector_products, model, images, vectors, labels=labels, targets=targets
    )
    exact, finite = products(exact=True), products(h=h)
    both = {"exact": exact, "finite": finite}
    return {
        name: each.flatten(2).square().sum(dim=2).mean(dim=1).sqrt() for name, each in both.items()
    }


def _logits(few: Sequence[CureStudy[Settings]]) -> dict[str, Estimate]:
    settings, rows = few[0].settings, []
    for study in few:
        images = study.test.first(settings.logit_samples).images
        work = partial(logit_curvatures, study.model, h=1.0)
        rows.append(study.executor.cached(work, images, randomness=True).value)
    statistics = {"exact_logit_hessian": maximum("exact"), "finite_logit_hessian": mean("finite")}
    return measured(paired_bootstrap(stack(rows), statistics, resamples=settings.resamples))


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    kinds = {
        "power": ("mean", "power"),
        "power_median": ("median", "power"),
        "smoothed": ("mean", "smoothed"),
        "smoothed_median": ("median", "smoothed"),
        "lambda_max": ("mean", "lambda_max"),
        "lambda_max_median": ("median", "lambda_max"),
        "squares": ("mean", "squares"),
        "share_large": ("mean", "share_large"),
        "relative": ("median", "||H||_F / ||g||"),
    }
    rows: Sequence[dict[str, object]] = [
        {
            "network": TITLES[name],
            "quantity": quantity,
            "statistic": statistic,
            "value": e.value,
            "std": e.std,
            **interval(e),
        }
        for name in NETWORKS
        for key, (statistic, quantity) in kinds.items()
        for e in [numbers[f"{key}_{name}"]]
    ]
    return pd.DataFrame(rows)


def _eigenvalues(curves: Mapping[str, Tensor]) -> pd.DataFrame:
    count = len(next(iter(curves.values())))
    return pd.DataFrame(
        {"index": range(1, count + 1), **{name: curve.tolist() for name, curve in curves.items()}}
    )


def _figure(network: Network, curves: Mapping[str, Tensor]) -> Figure:
    """Figure 8.9: all sorted eigenvalues, and the largest ones by themselves."""
    figure, grid = axes_grid(1, 2, width=11.0, height=4.2)
    with styled():
        for axes, count in zip(grid[0], (None, 30), strict=True):
            for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
                values = curve[:count]
                axes.plot(
                    range(1, len(values) + 1),
                    values,
                    color=colour,
                    label=TITLES[name],
                    linewidth=1.8,
                )
            axes.set(
                xlabel="eigenvalue, the largest first", ylabel="mean eigenvalue, 1 / pixel$^2$"
            )
        grid[0, 0].set_title("all of them")
        grid[0, 1].set_title("the largest 30")
        grid[0, 1].legend()
        figure.suptitle(
            f"Curvature profile of the loss, {network.name}", fontsize=12.5, fontweight="bold"
        )
    return figure
