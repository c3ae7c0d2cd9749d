"""How many images it takes to make a universal perturbation (Section 4.3.2, Figure 4.6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import estimate_line, line_figure
from pipeline.statistics import Estimate, mean, of_means, spearman, stack
from pipeline.studies.universal import (
    Plan,
    UniversalStudy,
    made_of,
    random_vectors,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import columns, norm_sign
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "uap_set_size"]

SECTION = "Section 4.3.2, Figure 4.6"


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        sizes: numbers of images in X, each at least 2; half the number of classes and
            ``train_samples`` are added, larger ones than that are left out.
        draws: number of choices of images for each size below the largest, as far as they do not
            overlap; their fooling is averaged.
    """

    sizes: tuple[int, ...] = (500, 1000, 2000, 4000)
    draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("draws", self.draws)
        for size in self.sizes:
            check_count("sizes", size, minimum=2)


def uap_set_size(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Make vectors of one radius from sets X of different sizes, and judge them on unseen images.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs Algorithm 4.

    Returns:
        ``fool_val_<size>``, ``fool_val_half`` for half as many images as classes, ``fool_random``
        and Spearman's correlation of size and fooling.

    References:
        Thesis, Section 4.3.2 and Figure 4.6. S.-M. Moosavi-Dezfooli et al., "Universal adversarial
        perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    sizes = _sizes(settings, len(data.classes), len(studies[0].train))
    samples = stack(executor.each(lambda study: _measure(study, sizes, settings), studies))
    half = _half(len(data.classes))
    statistics = {
        **{f"fool_val_{size}": mean(str(size)) for size in sizes},
        **({"fool_val_half": mean(str(half))} if half in sizes else {}),
        "fool_random": mean("random"),
        "spearman": of_means([str(size) for size in sizes], partial(spearman, sizes)),
    }
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    # A size of which no choice makes a vector has no number.
    made = [size for size in sizes if f"fool_val_{size}" in numbers]
    return Findings(
        numbers=numbers,
        tables={"figure_4_6": _table(made, numbers)},
        figures={"figure_4_6": _figure(network, made, numbers, settings)} if made else {},
        notes=_notes(studies, sizes, len(data.classes), settings),
    )


def _half(classes: int) -> int:
    """Half as many images as classes: the thesis' 500 for 1,000."""
    return max(2, classes // 2)


def _sizes(settings: Settings, classes: int, largest: int) -> list[int]:
    """The sizes below that of the largest X, and this; half the number of classes if it is one."""
    smaller = {size for size in (*settings.sizes, _half(classes)) if size < largest}
    if not smaller:
        refuse("train_samples", largest, f"more than {min(*settings.sizes, _half(classes))}")
    return sorted(smaller | {largest})


def _measure(study: UniversalStudy, sizes: Sequence[int], settings: Settings) -> dict[str, Tensor]:
    """Size -> (n,) share of the draws whose vector fools each held-out image."""
    images, unseen = study.train.images, study.test.images
    xi = study.xi(settings.norm)
    labels = study.labels(images, images[:0])[:, 0]
    usable = [
        chosen
        for chosen in _choices(len(labels), sizes, settings.draws)
        if len(labels[chosen].unique()) > 1
    ]
    made = study.make([Plan(settings.norm, xi, members=chosen) for chosen in usable])
    shares = {}
    for size in sizes[:-1]:
        vectors = [
            v.perturbation for chosen, v in zip(usable, made, strict=True) if len(chosen) == size
        ]
        # The empty part keeps the shape where no choice is usable; the mean is then NaN.
        shares[str(size)] = study.fooled(unseen, torch.cat([images[:0], *vectors])).mean(dim=1)
    shares[str(sizes[-1])] = study.fooled(unseen, study.vector(settings.norm).perturbation)[:, 0]
    noise = random_vectors(images.shape[1:], settings.norm, xi, 2)
    return shares | {"random": study.fooled(unseen, noise).mean(dim=1)}


def _choices(images: int, sizes: Sequence[int], draws: int) -> list[Tensor]:
    """Indices into X: for each size but the largest, up to ``draws`` stretches of X.

    The stretches of a size do not overlap. X stands in a stratified order, so that each holds the
    classes in nearly the same proportions.
    """
    starts = {
        size: [size * draw for draw in range(draws) if size * (draw + 1) <= images]
        for size in sizes[:-1]
    }
    return [
        torch.arange(start, start + size) for size, begins in starts.items() for start in begins
    ]


def _table(sizes: Sequence[int], numbers: dict[str, Estimate]) -> pd.DataFrame:
    rows = []
    for size in sizes:
        fooled = numbers[f"fool_val_{size}"]
        rows.append(
            {
                "images_in_X": size,
                **columns("fool_val", fooled),
                "images_val": fooled.n,
                "seeds": fooled.seeds,
            }
        )
    return pd.DataFrame(rows)


def _figure(
    network: Network, sizes: Sequence[int], numbers: dict[str, Estimate], settings: Settings
) -> Figure:
    line = estimate_line(sizes, [numbers[f"fool_val_{size}"] for size in sizes])
    figure = line_figure(
        {f"one {norm_sign(settings.norm)} vector": line},
        xlabel="number of images in X",
        ylabel="share of held-out images fooled",
        title=f"Fooling over the size of X, {network.name}",
        references={"random vectors": numbers["fool_random"].value},
        log_x=True,
        limits=(0, 1),
    )
    axes = figure.axes[0]
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    return figure


def _notes(
    studies: Sequence[UniversalStudy], sizes: Sequence[int], classes: int, settings: Settings
) -> list[str]:
    return [
        *made_of(studies),
        f"Sizes of X: {', '.join(map(str, sizes))}; for each but the largest, up to "
        f"{settings.draws} choice(s) of "
        f"images, whose fooling is averaged. {_half(classes)} is half the number of classes, as "
        f"the thesis' 500{'' if _half(classes) in sizes else ', for which X is too small here'}.",
        "A choice to which the classifier gives one label alone makes no vector and is left out. "
        "The radius is that of "
        "the largest X throughout; the thesis does not name the norm.",
    ]
