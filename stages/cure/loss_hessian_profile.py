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
    ratio_of_means,
    stack,
)
from pipeline.studies.cure import TITLES, CureStudy, cure_studies, notes
from pipeline.studies.loss_hessian import HessianSettings, profiles_of_seeds
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
    """

    samples: int = 100
    logit_samples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("logit_samples", self.logit_samples, minimum=2)


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
        ``lambda_max_*`` and ``squares_*`` (the sum of the squared eigenvalues), means over the
        images of ``original``, ``deepfool`` and ``cure``, with their ratios; ``share_large_*``: the
        share of eigenvalues of at least a tenth of the largest size; ``exact_logit_hessian`` (the
        largest) and ``finite_logit_hessian`` (the mean): Frobenius norms of the Hessian of a logit
        difference, exactly and over h = 1.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    few = studies[: settings.profile_seeds]
    spectra = {name: profiles_of_seeds(few, name, "eigenvalues") for name in NETWORKS}
    samples = {
        key: values for name in NETWORKS for key, values in _sizes(name, spectra[name]).items()
    }
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    numbers |= _logits(few)
    flat = sum(int(samples[f"share_large {name}"].isnan().sum()) for name in NETWORKS)
    curves = {name: values.mean(dim=(0, 1)) for name, values in spectra.items()}
    h = settings.curvature_h or default_h(studies[0].test.images[0].numel())
    return Findings(
        numbers=numbers,
        tables={"profile": _table(numbers), "eigenvalues": _eigenvalues(curves)},
        figures={"figure_8_9": _figure(network, curves)},
        notes=[
            *notes(few),
            f"Hessians of the cross-entropy at the true label on {spectra['cure'].shape[1]} "
            f"held-out images, by {settings.scheme} differences over h = {h:.4g} in pixel l2, of "
            f"{len(few)} training seed(s).",
            "The loss of an image that a network is sure of hardly bends: the means hang on few "
            f"images, see the standard deviations. In {flat} cases of an image and network the "
            "Hessian is zero to the last digit; they are left out of the shares of large "
            "eigenvalues.",
            "The exact Hessian of the next minus the predicted logit is taken on "
            f"{settings.logit_samples} images along {DRAWS} random directions.",
        ],
    )


def _sizes(name: str, spectra: Tensor) -> dict[str, Tensor]:
    """Name -> (seeds, n) sizes of spectra (seeds, n, d), the largest eigenvalue first."""
    sizes = spectra.abs()
    largest = sizes.amax(dim=-1, keepdim=True)
    large = (sizes >= LARGE * largest).double().mean(dim=-1)
    return {
        f"lambda_max {name}": spectra[..., 0],
        f"squares {name}": spectra.square().sum(dim=-1),
        f"share_large {name}": valid(large, largest[..., 0] > 0),
    }


def _statistics() -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for name in NETWORKS:
        numbers |= {
            f"{size}_{name}": mean(f"{size} {name}")
            for size in ("lambda_max", "squares", "share_large")
        }
    for first, second in (("deepfool", "original"), ("cure", "original"), ("cure", "deepfool")):
        pair = (f"lambda_max {first}", f"lambda_max {second}")
        numbers[f"lambda_max_{first} / lambda_max_{second}"] = ratio_of_means(*pair)
    for name in NETWORKS[1:]:
        numbers[f"squares_original - squares_{name}"] = difference(
            "squares original", f"squares {name}"
        )
    return numbers


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
    rows: Sequence[dict[str, object]] = [
        {"network": TITLES[name], "quantity": size, "mean": e.value, "std": e.std, **interval(e)}
        for name in NETWORKS
        for size in ("lambda_max", "squares", "share_large")
        for e in [numbers[f"{size}_{name}"]]
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
