"""The share of images that one universal perturbation fools (Table 4.1, Figures 4.3 and 4.4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.plots import Line, estimate_line, line_figure
from pipeline.statistics import (
    Estimate,
    Statistic,
    mean,
    median,
    of_means,
    ratio_of_means,
    share,
    stack,
)
from pipeline.studies.universal import (
    CLIP,
    Plan,
    UniversalStudy,
    made_of,
    random_vectors,
    scaled,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
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


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure, beyond the settings of :class:`UniversalSettings`.

    Attributes:
        norms: exponents p of the balls, 2 or inf; the attack's own is measured as well.
        factors: multiples of xi, each above 0, to which the vector is scaled for the curve of
            fooling over its norm.
        anew: multiples of xi, each above 0, for which a vector is made anew, on the same curve.
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
    """Make one vector per norm with Algorithm 4 and measure the share of images it fools.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on: X is drawn from its training images.
        settings: what to measure.
        executor: runs Algorithm 4.

    Returns:
        For each norm: ``fool_X``, ``fool_val`` (without and with clipping x + v to [0, 1]) and
        their difference, ``fool_random``, ``xi`` and its share of an image's norm; the curve of
        fooling over the norm; the vectors.

    References:
        Thesis, Sections 4.1 and 4.2, Table 4.1, Figures 4.3 and 4.4. S.-M. Moosavi-Dezfooli et al.,
        "Universal adversarial perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    samples = stack(executor.each(lambda study: _measure(study, settings), studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    curves = {norm: _curve(studies, norm, settings) for norm in settings.balls}
    return Findings(
        numbers=numbers,
        curves=_histories(studies, settings),
        tables={
            "table_4_1": _table(numbers, settings),
            "by_seed": _by_seed(studies, settings),
            "curve": pd.concat(
                [_curve_table(norm, lines) for norm, lines in curves.items()], ignore_index=True
            ),
        },
        figures={
            "figure_4_3": _examples(studies[0], data, network, settings),
            "figure_4_4": _vectors(studies, network, settings),
            **{
                f"curve_{norm_name(norm)}": _curve_figure(norm, lines, network)
                for norm, lines in curves.items()
            },
        },
        tensors={
            f"v_{norm_name(p)}": torch.cat([_vector(study, p) for study in studies])
            for p in settings.balls
        },
        notes=_notes(studies, numbers, settings),
    )


def _vector(study: UniversalStudy, norm: float) -> Tensor:
    return study.vector(norm).perturbation


def _measure(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """Name -> one value per image of X (``X``, ``noise``) or per held-out image (the others)."""
    values = {"noise": study.noise()}
    for norm in settings.balls:
        name, v, xi = norm_name(norm), _vector(study, norm), study.xi(norm)
        sizes = norms(study.test.images, norm).double()
        noise = random_vectors(v.shape[1:], norm, xi, settings.random_vectors)
        small = scaled(v, norm, THESIS_SHARE * float(sizes.mean()))
        unclipped = study.fooled(study.test.images, torch.cat([v, small, noise]))
        values |= {
            f"X {name}": study.fooled(study.train.images, v)[:, 0],
            f"val {name}": unclipped[:, 0],
            f"small {name}": unclipped[:, 1],
            f"random {name}": unclipped[:, 2:].mean(dim=1),
            f"clipped {name}": study.fooled(study.test.images, v, clip=CLIP)[:, 0],
            f"xi {name}": torch.full_like(sizes, xi),
            f"size {name}": sizes,
            f"size255 {name}": FULL_SCALE * sizes,
        }
    return values


def _statistics(settings: Settings) -> dict[str, Statistic]:
    statistics = {"random_norm": median("noise")}
    for norm in settings.balls:
        name = norm_name(norm)
        pair = (f"X {name}", f"val {name}")
        statistics |= {
            f"fool_X_{name}": share(f"X {name}"),
            f"fool_val_{name}": share(f"val {name}"),
            f"fool_X_{name} - fool_val_{name}, absolute": of_means(pair, _distance),
            f"fool_val_{name}_clipped": share(f"clipped {name}"),
            f"fool_val_{name}_at_4%": share(f"small {name}"),
            f"fool_random_{name}": mean(f"random {name}"),
            f"xi_{name}": mean(f"xi {name}"),
            f"xi_{name} / image_norm": ratio_of_means(f"xi {name}", f"size {name}"),
            f"image_norm_{name}": mean(f"size {name}"),
            f"image_norm_{name}_255": mean(f"size255 {name}"),
        }
    every = [f"X {norm_name(norm)}" for norm in settings.balls]
    return statistics | {"fool_X_smallest": of_means(every, _smallest)}


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


def _smallest(*values: Tensor) -> Tensor:
    return torch.stack(values).amin(dim=0)


def _curve(
    studies: Sequence[UniversalStudy], norm: float, settings: Settings
) -> dict[str, tuple[list[float], list[Estimate]]]:
    """Curve -> its multiples of xi and the shares of held-out images fooled."""
    shares = stack([_curve_shares(study, norm, settings) for study in studies])
    estimates = paired_bootstrap(
        shares, {name: share(name) for name in shares}, resamples=settings.resamples
    )
    lines: dict[str, tuple[list[float], list[Estimate]]] = {}
    for key, estimate in estimates.items():
        curve, factor = key.rsplit(" ", 1)
        x, y = lines.setdefault(curve, ([], []))
        x.append(float(factor))
        y.append(estimate)
    return lines


def _curve_shares(study: UniversalStudy, norm: float, settings: Settings) -> dict[str, Tensor]:
    """Name of a point of the curves -> one value per held-out image."""
    v, images = _vector(study, norm), study.test.images[: settings.curve_samples]
    noise = random_vectors(v.shape[1:], norm, study.xi(norm), 1)
    multiples = torch.cat([v * factor for factor in settings.factors])
    drawn = torch.cat([noise * factor for factor in settings.factors])
    largest = {p: images[0].numel() ** (1 / p) for p in settings.balls}  # no image differs by more
    plans = [
        Plan(p, min(factor * study.xi(p), largest[p]))
        for p in settings.balls
        for factor in settings.anew
    ]
    made = study.make(plans) if plans else []
    at = settings.balls.index(norm) * len(settings.anew)
    anew = [each.perturbation for each in made[at : at + len(settings.anew)]]
    sets = {
        "scaled": (multiples, settings.factors, None),
        "scaled, clipped to [0, 1]": (multiples, settings.factors, CLIP),
        "random": (drawn, settings.factors, None),
    } | ({"made anew": (torch.cat(anew), settings.anew, None)} if anew else {})
    shares: dict[str, Tensor] = {}
    for curve, (vectors, factors, clip) in sets.items():
        fooled = study.fooled(images, vectors, clip=clip)
        shares |= {f"{curve} {factor}": fooled[:, k] for k, factor in enumerate(factors)}
    return shares


def _histories(studies: Sequence[UniversalStudy], settings: Settings) -> dict[str, Sequence[float]]:
    return {
        f"fool_X_{norm_name(norm)} after each pass, seed {study.seed}": study.vector(
            norm
        ).history.tolist()
        for norm in settings.balls
        for study in studies
    }


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    """Table 4.1 for one network, one row per norm."""
    rows = []
    for norm in settings.balls:
        name = norm_name(norm)
        row: dict[str, object] = {"norm": name, "xi": numbers[f"xi_{name}"].value}
        row["xi_over_image_norm"] = numbers[f"xi_{name} / image_norm"].value
        for column in ("X", "val", "random"):
            row |= columns(f"fool_{column}", numbers[f"fool_{column}_{name}"])
        row |= columns("fool_val_clipped", numbers[f"fool_val_{name}_clipped"])
        fooled = numbers[f"fool_val_{name}"]
        rows.append(
            row
            | {
                "images_X": numbers[f"fool_X_{name}"].n,
                "images_val": fooled.n,
                "seeds": fooled.seeds,
            }
        )
    return pd.DataFrame(rows)


def _by_seed(studies: Sequence[UniversalStudy], settings: Settings) -> pd.DataFrame:
    rows = []
    for study in studies:
        for norm in settings.balls:
            made = study.vector(norm)
            fooled = study.fooled(study.test.images, made.perturbation).mean()
            entry = {"seed": study.seed, "norm": norm_name(norm), "xi": study.xi(norm)}
            size = float(norms(made.perturbation, norm))
            rows.append(entry | {"norm_of_v": size, "fool_val": float(fooled), **_course(made)})
    return pd.DataFrame(rows)


def _course(made: Universal) -> dict[str, object]:
    """How Algorithm 4 went."""
    visits, updates = int(made.visits.sum()), int(made.updates.sum())
    return {
        "fool_X": made.fooling_rate,
        "passes": made.passes,
        "visits": visits,
        "updates": updates,
        "stopped": made.stopped,
    }


def _curve_table(
    norm: float, lines: Mapping[str, tuple[list[float], list[Estimate]]]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "norm": norm_name(norm),
            "vector": curve,
            "norm_over_xi": x,
            **columns("fool_val", e),
            "images": e.n,
        }
        for curve, (factors, estimates) in lines.items()
        for x, e in zip(factors, estimates, strict=True)
    )


def _curve_figure(
    norm: float, lines: Mapping[str, tuple[list[float], list[Estimate]]], network: Network
) -> Figure:
    drawn: dict[str, Line] = {}
    styles = {"random": (":", ""), "made anew": ("", "s")}
    for curve, (x, estimates) in lines.items():
        style, marker = styles.get(curve, ("-", "o"))
        drawn[curve] = estimate_line(x, estimates, style=style, marker=marker)
    return line_figure(
        drawn,
        xlabel=rf"{norm_sign(norm)} norm of the vector over $\xi$",
        ylabel="share of held-out images fooled",
        title=f"Fooling over the norm of one vector, {network.name}",
        limits=(0, 1),
    )


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
        rows, title=f"Held-out images and their labels, {network.name}", row_titles=titles, side=1.6
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
        *made_of(studies),
        f"xi over the mean norm of an image: {', '.join(shares)}; in the thesis 0.04 in both. "
        "Where it is larger than "
        "there, the vector can be seen plainly; 'at_4%' is the same vector scaled to the thesis' "
        "share.",
        "Algorithm 4 does not clip x + v; the numbers that end in _clipped do. Figure 4.3 shows "
        "clipped pictures, and "
        "where clipping changes the label both labels.",
        f"The curve is over {min(settings.curve_samples, len(first.test))} held-out images: the "
        "vector made for xi, "
        "scaled, without and with clipping; squares are vectors made anew for their norm, which "
        "end at the fooling "
        "rate that Algorithm 4 is asked for.",
    ]
