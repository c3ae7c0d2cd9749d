"""The share of images fooled over the norm of one universal vector."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.plots import Line, estimate_line, line_figure
from pipeline.statistics import Estimate, share, stack
from pipeline.studies.universal import (
    CLIP,
    GRADIENT,
    Plan,
    UniversalStudy,
    makers_of,
    random_vectors,
)
from pipeline.tables import columns, norm_name, norm_sign
from robustness_geometry.types import Network

__all__ = ["curve_figure", "curve_table", "fooling_curve"]


class _Settings(Protocol):
    """The settings of an experiment that draws the curve."""

    @property
    def factors(self) -> tuple[float, ...]: ...
    @property
    def anew(self) -> tuple[float, ...]: ...
    @property
    def curve_samples(self) -> int: ...
    @property
    def resamples(self) -> int: ...


def fooling_curve(
    studies: Sequence[UniversalStudy], norm: float, settings: _Settings
) -> dict[str, tuple[list[float], list[Estimate]]]:
    """Curve -> its multiples of xi and the shares of held-out images fooled.

    The vector is the better of both makers' for xi, scaled, without and with clipping x + v to
    [0, 1]; beside it stand a random vector, scaled, and vectors made anew by gradients.

    Args:
        studies: one for each training seed.
        norm: p of the ball.
        settings: multiples of xi, number of held-out images, resamples.
    """
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


def _curve_shares(study: UniversalStudy, norm: float, settings: _Settings) -> dict[str, Tensor]:
    """Name of a point of the curves -> one value per held-out image."""
    v, images = study.best(norm).perturbation, study.test.images[: settings.curve_samples]
    noise = random_vectors(v.shape[1:], norm, study.xi(norm), 1)
    multiples = torch.cat([v * factor for factor in settings.factors])
    drawn = torch.cat([noise * factor for factor in settings.factors])
    again = settings.anew if GRADIENT in makers_of(norm) else ()
    largest = images[0].numel() ** (1 / norm)  # no two images differ by more
    plans = [Plan(norm, min(factor * study.xi(norm), largest)) for factor in again]
    anew = [each.perturbation for each in study.make(plans, GRADIENT)]
    sets = {
        "scaled": (multiples, settings.factors, None),
        "scaled, clipped to [0, 1]": (multiples, settings.factors, CLIP),
        "random": (drawn, settings.factors, None),
    } | ({"made anew": (torch.cat(anew), again, None)} if anew else {})
    shares: dict[str, Tensor] = {}
    for curve, (vectors, factors, clip) in sets.items():
        fooled = study.fooled(images, vectors, clip=clip)
        shares |= {f"{curve} {factor}": fooled[:, k] for k, factor in enumerate(factors)}
    return shares


def curve_table(
    norm: float, lines: Mapping[str, tuple[list[float], list[Estimate]]]
) -> pd.DataFrame:
    """The curves of :func:`fooling_curve` as a table, one row per point."""
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


def curve_figure(
    norm: float, lines: Mapping[str, tuple[list[float], list[Estimate]]], network: Network
) -> Figure:
    """The curves of :func:`fooling_curve` as a figure."""
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
