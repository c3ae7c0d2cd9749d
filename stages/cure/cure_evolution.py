"""Figure 8.10: curvature and robustness while CURE trains (Section 8.5.2).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.2.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, Statistic, difference, mean, of_means, share, spearman
from pipeline.studies.cure import CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import interval
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.geometry import loss_gradients, loss_hessian_products
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "cure_evolution", "curvature_norms"]

SECTION = "Section 8.5.2, Figure 8.10"

QUANTITIES = {
    "frobenius": r"$\|H\|_F$, estimated",
    "hz": r"$\|Hz\|_2$, z along sign$(g)$",
    "adversarial": "accuracy under attack",
}
"""Name of the numbers -> name of the quantity in the figure."""


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure, on the first training seed.

    Attributes:
        draws: number of random z behind each image's Frobenius norm, at least 1; 100 in the thesis.
        curvature_h: step of the differences, in pixel l2, > 0; None: CURE's own h.
    """

    draws: int = 100
    curvature_h: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("draws", self.draws)
        if self.curvature_h is not None:
            check_positive("curvature_h", self.curvature_h)


def cure_evolution(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure ||H||_F, ||H z|| and accuracy under attack before CURE and after each of its epochs.

    Args:
        network: the trained classifiers; the first training seed is measured.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``frobenius_<epoch>``, ``hz_<epoch>`` and ``adversarial_<epoch>``, means over the images,
        the rank correlations ``spearman_*`` of those means with the epoch, and the net changes
        ``<name>_last - <name>_first`` and ``<name>_first - <name>_last`` between epoch 0, the
        network before CURE, and the last one.
    """
    study = cure_studies(network, data, settings, executor)[0]
    settings = study.settings
    h = settings.curvature_h or study.settings.cure(study.std).h
    models = [study.model, *study.tuned("cure").epochs]
    samples = {
        f"{name} {epoch}": values
        for epoch, model in enumerate(models)
        for name, values in _measured(study, model, h).items()
    }
    numbers = measured(
        paired_bootstrap(samples, _statistics(len(models)), resamples=settings.resamples)
    )
    curves = {name: _curve(numbers, name, len(models)) for name in QUANTITIES}
    return Findings(
        numbers=numbers,
        curves={name: [e.value for e in curve] for name, curve in curves.items()},
        tables={"figure_8_10": _table(curves)},
        figures={"figure_8_10": _figure(network, curves)},
        notes=[
            *notes([study]),
            f"One training seed, {len(study.test)} held-out images, {settings.draws} draws of z; "
            f"differences over h = {h:.4g} in pixel l2. Epoch 0 is the network before CURE.",
        ],
    )


def curvature_norms(
    model: Classifier,
    images: Images,
    labels: Labels,
    *,
    h: float,
    draws: int,
    generator: Generators = None,
) -> dict[str, Tensor]:
    """Two sizes of the loss's Hessian H at each image, by differences of gradients over ``h``.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        h: step of the differences, in pixel l2.
        draws: number of random z per image.
        generator: one for the batch or one per image.

    Returns:
        ``frobenius`` (N,): sqrt(mean ||H z||^2) over normal z (Equation 8.5); ``hz`` (N,): ||H z||
        for z the unit vector along the sign of the gradient.
    """
    vectors = normal(images.new_empty(len(images), draws, *images.shape[1:]), generator)
    products = loss_hessian_products(model, images, labels, vectors, h=h)
    signs = loss_gradients(model, images, labels)[1].sign()
    unit = signs / norms(signs).clamp_min(1).view(-1, *[1] * (signs.ndim - 1))
    along = loss_hessian_products(model, images, labels, unit[:, None], h=h)
    return {
        "frobenius": products.flatten(2).square().sum(dim=2).mean(dim=1).sqrt(),
        "hz": norms(along[:, 0]),
    }


def _measured(study: CureStudy[Settings], model: Classifier, h: float) -> dict[str, Tensor]:
    work = partial(curvature_norms, model, h=h, draws=study.settings.draws)
    sizes = study.executor.cached(work, study.test.images, study.test.labels, randomness=True).value
    return {
        **{name: values.double() for name, values in sizes.items()},
        "adversarial": study.right(model, study.judge()),
    }


def _statistics(count: int) -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for name in QUANTITIES:
        names = tuple(f"{name} {epoch}" for epoch in range(count))
        single = share if name == "adversarial" else mean
        numbers |= {f"{name}_{epoch}": single(each) for epoch, each in enumerate(names)}
        correlation = of_means(names, partial(spearman, range(count)))
        numbers[f"spearman_{name}"] = replace(correlation, joint=True)
        numbers[f"{name}_last - {name}_first"] = difference(names[-1], names[0])
        numbers[f"{name}_first - {name}_last"] = difference(names[0], names[-1])
    return numbers


def _curve(numbers: Mapping[str, Estimate], name: str, count: int) -> Sequence[Estimate]:
    return [numbers[f"{name}_{epoch}"] for epoch in range(count)]


def _table(curves: Mapping[str, Sequence[Estimate]]) -> pd.DataFrame:
    rows = [
        {"quantity": name, "epoch": epoch, "value": estimate.value, **interval(estimate)}
        for name, curve in curves.items()
        for epoch, estimate in enumerate(curve)
    ]
    return pd.DataFrame(rows)


def _figure(network: Network, curves: Mapping[str, Sequence[Estimate]]) -> Figure:
    figure, grid = axes_grid(1, len(curves), width=12.0, height=3.6)
    with styled():
        for axes, (name, curve), colour in zip(grid[0], curves.items(), COLOURS, strict=False):
            epochs = range(len(curve))
            axes.plot(epochs, [e.value for e in curve], marker="o", color=colour)
            axes.fill_between(
                epochs, [e.low for e in curve], [e.high for e in curve], color=colour, alpha=0.18
            )
            axes.set(xlabel="epochs of CURE", title=QUANTITIES[name], ylim=(0, None))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(f"While CURE trains, {network.name}", fontsize=12.5, fontweight="bold")
    return figure
