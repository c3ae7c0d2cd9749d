"""The share of images that one universal perturbation fools (Table 4.1, Figures 4.3 and 4.4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.statistics import (
    Estimate,
    Statistic,
    mean,
    mean_share,
    median,
    of_means,
    ratio_of_means,
    share,
    stack,
)
from pipeline.studies.universal import (
    ALGORITHM,
    CLIP,
    GRADIENT,
    MAKERS,
    UniversalStudy,
    made_by_both,
    makers_of,
    random_vectors,
    scaled,
    universal_studies,
)
from pipeline.studies.universal_curve import curve_figure, curve_table, fooling_curve
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.studies.universal_vectors import together
from pipeline.tables import class_name, columns, norm_name, norm_sign
from robustness_geometry.attacks.universal import Universal
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "uap_main"]

SECTION = "Section 4.2, Table 4.1, Figures 4.3 and 4.4"

THESIS_SHARE = 0.04
"""xi over the mean norm of an image: 2,000 of 50,000, and 10 of 250 (Section 4.2, footnote 1)."""

FULL_SCALE = 255
"""Levels of a pixel in the thesis' units."""

KINDS = {"": MAKERS, f" ({ALGORITHM})": (ALGORITHM,), f" ({GRADIENT})": (GRADIENT,)}
"""End of a number's name -> the makers of whose vectors it is the best on X."""


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        norms: exponents p of the balls, 2 or inf; the attack's own is measured as well.
        factors: multiples of xi, each above 0, to which the vector is scaled for the curve of
            fooling over its norm.
        anew: multiples of xi, each above 0, for which the gradient maker makes a vector anew, on
            the same curve.
        curve_samples: number of held-out images that the curve is over.
        random_vectors: number of random vectors of norm xi to compare with.
        shown: number of images in Figure 4.3.
    """

    norms: tuple[float, ...] = (2.0, math.inf)
    factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    anew: tuple[float, ...] = (2.0,)
    curve_samples: int = 500
    random_vectors: int = 5
    shown: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("curve_samples", "random_vectors", "shown"):
            check_count(name, getattr(self, name))
        for name in ("factors", "anew"):  # configurations give whole numbers as well
            object.__setattr__(
                self, name, tuple(check_positive(name, value) for value in getattr(self, name))
            )

    @property
    def balls(self) -> list[float]:
        """The norms, the attack's own among them, each once."""
        return list(dict.fromkeys([*(float(p) for p in self.norms), self.norm]))


def uap_main(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Make one vector per norm and measure the share of images it fools.

    Algorithm 4 makes it, and for comparison a second maker by gradients.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on: X is drawn from its training images.
        settings: what to measure.
        executor: makes the vectors.

    Returns:
        For each norm, of the better vector of the two, and with the maker's name at the end of each
        of them: ``fool_X``, on the images of X that it is made of; ``fool_val`` (without and with
        clipping x + v to [0, 1]) and their difference. Further ``fool_random``, ``xi`` and its
        share of an image's norm; the curve of fooling over the norm; the vectors.

    References:
        Thesis, Sections 4.1 and 4.2, Table 4.1, Figures 4.3 and 4.4. S.-M. Moosavi-Dezfooli et al.,
        "Universal adversarial perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    samples = stack(executor.each(lambda study: _measure(study, settings), studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    curves = {norm: fooling_curve(studies, norm, settings) for norm in settings.balls}
    return Findings(
        numbers=numbers,
        curves=_histories(studies, settings),
        tables={
            "table_4_1": _table(numbers, settings),
            "by_seed": _by_seed(studies, settings),
            "curve": pd.concat(
                [curve_table(norm, lines) for norm, lines in curves.items()], ignore_index=True
            ),
        },
        figures={
            "figure_4_3": _examples(studies[0], data, network, settings),
            "figure_4_4": _vectors(studies, network, settings),
            **{
                f"curve_{norm_name(norm)}": curve_figure(norm, lines, network)
                for norm, lines in curves.items()
            },
        },
        tensors={
            f"v_{norm_name(p)}": torch.cat([_vector(study, p) for study in studies])
            for p in settings.balls
        },
        notes=_notes(studies, numbers, settings),
    )


def _kinds(norm: float) -> dict[str, tuple[str, ...]]:
    """KINDS for one norm: the gradient maker has none but 2 and inf."""
    return {kind: makers for kind, makers in KINDS.items() if set(makers) & set(makers_of(norm))}


def _vector(study: UniversalStudy, norm: float) -> Tensor:
    return study.best(norm).perturbation


def _measure(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """Name -> one value per image of X (``X``, ``noise``) or per held-out image (the others)."""
    values = {"noise": study.flat_noise(), "measured": study.noise()}
    for norm in settings.balls:
        name, xi = norm_name(norm), study.xi(norm)
        sizes = norms(study.test.images, norm).double()
        shape = study.test.images.shape[1:]
        noise = random_vectors(shape, norm, xi, settings.random_vectors)
        small = scaled(study.best(norm).perturbation, norm, THESIS_SHARE * float(sizes.mean()))
        unclipped = study.fooled(study.test.images, torch.cat([small, noise]))
        values |= {
            f"small {name}": unclipped[:, 0],
            f"random {name}": unclipped[:, 1:].mean(dim=1),
            f"xi {name}": torch.full_like(sizes, xi),
            f"size {name}": sizes,
            f"size255 {name}": FULL_SCALE * sizes,
        }
        values |= _of_makers(study, norm)
    return values


def _of_makers(study: UniversalStudy, norm: float) -> dict[str, Tensor]:
    """Whether the vectors of KINDS fool the images of X that they are made of, and unseen ones."""
    found = [study.best(norm, maker) for maker in makers_of(norm)]
    vectors = torch.cat([one.perturbation for one in found])
    shares = {
        "X": study.fooled(study.train.images, vectors),
        "val": study.fooled(study.test.images, vectors),
        "clipped": study.fooled(study.test.images, vectors, clip=CLIP),
    }
    values = {}
    for kind, makers in _kinds(norm).items():
        best = study.best(norm, *makers)
        at = [one.maker for one in found].index(best.maker)
        for part, fooled in shares.items():
            kept = best.images if part == "X" else len(fooled)
            values[f"{part} {norm_name(norm)}{kind}"] = fooled[:kept, at]
    return values


def _statistics(settings: Settings) -> dict[str, Statistic]:
    statistics = {"random_norm": median("noise"), "noise_norm": median("measured")}
    for norm in settings.balls:
        name = norm_name(norm)
        for kind in _kinds(norm):
            pair = (f"X {name}{kind}", f"val {name}{kind}")
            statistics |= {
                f"fool_X_{name}{kind}": share(pair[0]),
                f"fool_val_{name}{kind}": share(pair[1]),
                f"fool_X_{name} - fool_val_{name}, absolute{kind}": of_means(pair, _distance),
                f"fool_val_{name}_clipped{kind}": share(f"clipped {name}{kind}"),
            }
        statistics |= {
            f"fool_val_{name}_at_4%": share(f"small {name}"),
            f"fool_random_{name}": mean_share(f"random {name}"),
            f"xi_{name}": mean(f"xi {name}"),
            f"xi_{name} / image_norm": ratio_of_means(f"xi {name}", f"size {name}"),
            f"image_norm_{name}": mean(f"size {name}"),
            f"image_norm_{name}_255": mean(f"size255 {name}"),
        }
    for kind in KINDS:
        every = [f"X {norm_name(p)}{kind}" for p in settings.balls if kind in _kinds(p)]
        # Whether Algorithm 4 converges is a question to it alone, not to a variant.
        variant = kind == f" ({ALGORITHM})" and not together(settings.algorithm)
        name = f"fool_X_smallest{kind}" + (", variant" if variant else "")
        statistics[name] = of_means(every, _smallest)
    return statistics


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


def _smallest(*values: Tensor) -> Tensor:
    return torch.stack(values).amin(dim=0)


def _histories(studies: Sequence[UniversalStudy], settings: Settings) -> dict[str, Sequence[float]]:
    return {
        f"fool_X_{norm_name(norm)} after each pass, seed {study.seed}": study.best(
            norm, ALGORITHM
        ).made.history.tolist()
        for norm in settings.balls
        for study in studies
    }


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    """Table 4.1 for one network, for each norm a row of the better vector and of each maker's."""
    rows = []
    for norm in settings.balls:
        name = norm_name(norm)
        for kind, makers in _kinds(norm).items():
            row: dict[str, object] = {"norm": name, "xi": numbers[f"xi_{name}"].value}
            row["xi_over_image_norm"] = numbers[f"xi_{name} / image_norm"].value
            row["maker"] = "the better on X" if kind == "" else makers[0]
            for column in ("X", "val"):
                row |= columns(f"fool_{column}", numbers[f"fool_{column}_{name}{kind}"])
            row |= columns("fool_val_clipped", numbers[f"fool_val_{name}_clipped{kind}"])
            row |= columns("fool_random", numbers[f"fool_random_{name}"])
            fooled = numbers[f"fool_val_{name}{kind}"]
            row |= {"images_X": numbers[f"fool_X_{name}{kind}"].n, "images_val": fooled.n}
            rows.append(row | {"seeds": fooled.seeds})
    return pd.DataFrame(rows)


def _by_seed(studies: Sequence[UniversalStudy], settings: Settings) -> pd.DataFrame:
    """One row per training seed, norm, maker and order."""
    rows = []
    for study, norm in product(studies, settings.balls):
        best = study.best(norm)
        for maker in makers_of(norm):
            made = study.vectors(norm, maker)
            for order, one in enumerate(made):
                row = {"seed": study.seed, "norm": norm_name(norm), "maker": maker, "order": order}
                row |= {"xi": study.xi(norm), "norm_of_v": float(norms(one.perturbation, norm))}
                row |= _course(one)
                rows.append(row | {"best_on_X": (maker, order) == (best.maker, best.order)})
    return pd.DataFrame(rows)


def _course(made: Universal) -> dict[str, object]:
    """How the making went; visits are images, and updates are steps of gradients for that maker."""
    visits, updates = int(made.visits.sum()), int(made.updates.sum())
    return {
        "fool_X": made.fooling_rate,
        "passes": made.passes,
        "visits": visits,
        "updates": updates,
        "stopped": made.stopped,
    }


def _examples(study: UniversalStudy, data: Dataset, network: Network, settings: Settings) -> Figure:
    """Figure 4.3: held-out images without and with each vector, as the classifier labels them."""
    images = study.test.images[: settings.shown]
    vectors = torch.cat([_vector(study, norm) for norm in settings.balls])
    labels, clipped = study.labels(images, vectors), study.labels(images, vectors, clip=CLIP)
    rows: list[list[Panel | None]] = []
    for v, plain, shown in zip(
        [torch.zeros_like(vectors[0]), *vectors], labels.T, clipped.T, strict=True
    ):
        named = [
            class_name(data, a) + (f", clipped {class_name(data, b)}" if a != b else "")
            for a, b in zip(plain, shown, strict=True)
        ]
        rows.append(
            [Panel((x + v).clamp(*CLIP), name) for x, name in zip(images, named, strict=True)]
        )
    titles = ["original", *(f"with the {norm_sign(norm)} vector" for norm in settings.balls)]
    return image_grid(
        rows,
        title=f"Held-out images and their labels, {network.name} (pictures clipped to [0, 1])",
        row_titles=titles,
        side=1.6,
    )


def _vectors(studies: Sequence[UniversalStudy], network: Network, settings: Settings) -> Figure:
    """Figure 4.4: the vectors, one column per training seed."""
    rows: list[list[Panel | None]] = [
        [
            Panel(_vector(study, norm)[0], rf"$\xi$ = {study.xi(norm):.3g}", perturbation=True)
            for study in studies
        ]
        for norm in settings.balls
    ]
    return image_grid(
        rows,
        title=f"Universal perturbations,\n{network.name}",
        row_titles=[norm_sign(norm) for norm in settings.balls],
        column_titles=[f"training seed {study.seed}" for study in studies],
        side=2.1 if len(studies) > 1 else 4.2,
    )


def _notes(
    studies: Sequence[UniversalStudy], numbers: Mapping[str, Estimate], settings: Settings
) -> list[str]:
    first = studies[0]
    shares = [
        f"{numbers[f'xi_{norm_name(p)} / image_norm'].value:.2g} in {norm_name(p)}"
        for p in settings.balls
    ]
    return [
        *made_by_both(studies, *settings.balls),
        "fool_X is the share of the images that a vector is made of; of several makers and orders "
        "the best was chosen on X, which flatters fool_X a little and fool_val not.",
        f"xi over the mean norm of an image: {', '.join(shares)}; in the thesis 0.04 in both. "
        "Where it is larger than "
        "there, the vector can be seen plainly; 'at_4%' is the same vector scaled to the thesis' "
        "share.",
        "The thesis does not clip x + v, nor do the vectors here; the column fool_val_clipped and "
        "the numbers that end in _clipped are of x + v clipped to [0, 1]: images proper, of which "
        f"the vector fools {_clipped(numbers, settings)}. Figure 4.3 shows clipped pictures, and "
        "where clipping changes the label both labels.",
        f"The curve is over {min(settings.curve_samples, len(first.test))} held-out images: the "
        "vector made for xi, scaled, without and with clipping; squares are vectors that the "
        "gradient maker made anew for their norm.",
    ]


def _clipped(numbers: Mapping[str, Estimate], settings: Settings) -> str:
    """The shares fooled with clipping beside those without."""
    names = [norm_name(norm) for norm in settings.balls]
    return ", ".join(
        f"{numbers[f'fool_val_{name}_clipped'].value:.1%} instead of "
        f"{numbers[f'fool_val_{name}'].value:.1%} in {name}"
        for name in names
    )
