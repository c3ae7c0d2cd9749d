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
from pipeline.statistics import Estimate, mean_share, of_means, spearman, stack
from pipeline.studies.universal import (
    ALGORITHM,
    GRADIENT,
    Plan,
    UniversalStudy,
    made_of,
    random_vectors,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings, maker_name
from pipeline.tables import columns, norm_sign
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "uap_set_size"]

SECTION = "Section 4.3.2, Figure 4.6"


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        sizes: numbers of images in X, each at least 2; half the number of classes and
            ``train_samples`` are added, larger ones than that are left out.
        draws: number of choices of images for each size below the largest, as far as they do not
            overlap; their fooling is averaged, as is that of the largest X's ``orders``.
        algorithm_draws: the same for Algorithm 4, which stands beside the vectors made by
            gradients for the sizes that it is given.
    """

    sizes: tuple[int, ...] = (500, 1000, 2000, 4000)
    draws: int = 1
    algorithm_draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("draws", "algorithm_draws"):
            check_count(name, getattr(self, name))
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
        executor: makes the vectors.

    Returns:
        ``fool_val_<size>`` of the gradient maker's vectors, ``fool_val_half`` for half as many
        images as classes, ``fool_random`` and Spearman's correlation of size and fooling;
        ``fool_val_<size> (Algorithm 4)`` for the sizes that Algorithm 4 is given.

    References:
        Thesis, Section 4.3.2 and Figure 4.6. S.-M. Moosavi-Dezfooli et al., "Universal adversarial
        perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    sizes = _sizes(settings, len(data.classes), len(studies[0].train))
    samples = stack(executor.each(lambda study: _measure(study, sizes, settings), studies))
    half = _half(len(data.classes))
    statistics = {
        **{f"fool_val_{size}": mean_share(str(size)) for size in sizes},
        **({"fool_val_half": mean_share(str(half))} if half in sizes else {}),
        "fool_random": mean_share("random"),
        "spearman": of_means([str(size) for size in sizes], partial(spearman, sizes)),
    }
    ending = f" ({ALGORITHM})"
    statistics |= {
        f"fool_val_{name}": mean_share(name) for name in samples if name.endswith(ending)
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
    return sorted(smaller | {largest})


def _measure(study: UniversalStudy, sizes: Sequence[int], settings: Settings) -> dict[str, Tensor]:
    """Size, and maker -> (n,) share of the draws whose vector fools each held-out image."""
    images, unseen, norm = study.train.images, study.test.images, settings.norm
    shares = {}
    for maker, own in ((GRADIENT, images), (ALGORITHM, study.few)):
        ending = "" if maker == GRADIENT else f" ({maker})"
        for size in (size for size in sizes if size <= len(own)):
            vectors = torch.cat([images[:0], *_vectors(study, maker, own, size, settings)])
            # The empty part keeps the shape where no choice is usable; the mean is then NaN.
            shares[f"{size}{ending}"] = study.fooled(unseen, vectors).mean(dim=1)
    noise = random_vectors(images.shape[1:], norm, study.xi(norm), 2)
    return shares | {"random": study.fooled(unseen, noise).mean(dim=1)}


def _vectors(
    study: UniversalStudy, maker: str, images: Images, size: int, settings: Settings
) -> list[Tensor]:
    """A maker's vectors of choices of ``size`` of its images, or of all of them, for each order."""
    norm, draws = settings.norm, settings.draws if maker == GRADIENT else settings.algorithm_draws
    if size == len(images):
        return [one.perturbation for one in study.vectors(norm, maker)]
    labels = study.labels(images, images[:0])[:, 0]
    plans = [
        Plan(norm, study.xi(norm), members=chosen)
        for chosen in _choices(len(images), size, draws)
        if maker == GRADIENT or len(labels[chosen].unique()) > 1
    ]
    return [one.perturbation for one in study.make(plans, maker)]


def _choices(images: int, size: int, draws: int) -> list[Tensor]:
    """Indices into X: up to ``draws`` stretches of X, which do not overlap.

    X stands in a stratified order, so that each holds the classes in nearly the same proportions.
    """
    starts = [size * draw for draw in range(draws) if size * (draw + 1) <= images]
    return [torch.arange(start, start + size) for start in starts]


def _table(sizes: Sequence[int], numbers: dict[str, Estimate]) -> pd.DataFrame:
    rows = []
    for maker in (GRADIENT, ALGORITHM):
        ending = "" if maker == GRADIENT else f" ({maker})"
        for size in (size for size in sizes if f"fool_val_{size}{ending}" in numbers):
            fooled = numbers[f"fool_val_{size}{ending}"]
            row = {"maker": maker, "images_in_X": size, **columns("fool_val", fooled)}
            rows.append(row | {"images_val": fooled.n, "seeds": fooled.seeds})
    return pd.DataFrame(rows)


def _figure(
    network: Network, sizes: Sequence[int], numbers: dict[str, Estimate], settings: Settings
) -> Figure:
    lines = {GRADIENT: estimate_line(sizes, [numbers[f"fool_val_{size}"] for size in sizes])}
    given = {size: f"fool_val_{size} ({ALGORITHM})" for size in sizes}
    given = {size: name for size, name in given.items() if name in numbers}
    if given:
        lines[ALGORITHM] = estimate_line(list(given), [numbers[name] for name in given.values()])
    figure = line_figure(
        lines,
        xlabel="number of images in X",
        ylabel="share of held-out images fooled",
        title=f"Fooling of one {norm_sign(settings.norm)} vector over the size of X, "
        f"{network.name}",
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
    half, largest = _half(classes), sizes[-1]
    left_out = sorted(size for size in {*settings.sizes, half} if size > largest)
    steps = getattr(settings.ascent, "keywords", {}).get("iterations")
    notes = [
        *made_of(studies),
        f"Sizes of X: {', '.join(map(str, sizes))}; for each but the largest, up to "
        f"{settings.draws} choice(s) of images ({settings.algorithm_draws} for Algorithm 4), whose "
        f"fooling is averaged, as is that of the {settings.orders} order(s) of the largest. {half} "
        "is half the number of classes, as the thesis' 500.",
        f"The numbers without a maker's name are of {maker_name(settings.ascent)} ({steps} "
        "steps), which is quick at every size; Algorithm 4 stands beside it up to "
        f"{len(studies[0].few)} images. Its choices with a single label make no vector and are "
        "left out. The radius is the same throughout; the thesis does not name the norm.",
    ]
    if left_out:
        notes.append(
            f"Left out, as X has {largest} images: {', '.join(map(str, left_out))} images."
        )
    return notes
