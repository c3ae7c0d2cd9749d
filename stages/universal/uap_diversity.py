"""Diversity of the universal perturbations of one network (Section 4.3.1, Figure 4.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid
from pipeline.statistics import maximum, mean, minimum, stack
from pipeline.studies.universal import (
    ALGORITHM,
    GRADIENT,
    UniversalStudy,
    cosines,
    made_by_both,
    makers_of,
    random_vectors,
    universal_studies,
)
from pipeline.studies.universal_settings import UniversalSettings
from pipeline.tables import norm_name, norm_sign
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network

__all__ = [
    "SECTION",
    "Settings",
    "uap_diversity",
]

SECTION = "Section 4.3.1, Figure 4.5"


@dataclass(frozen=True)
class Settings(UniversalSettings):
    """What to measure: the vectors of at least two ``orders`` are compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("orders", self.orders, minimum=2)


def uap_diversity(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Make vectors from different shufflings of X and take their normalised inner products.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: makes the vectors.

    Returns:
        ``mean |cosine|`` over the pairs of a network's vectors by Algorithm 4, and of the largest
        pair of each training seed; the same of random vectors and of the gradient maker's; and the
        smallest and largest share of held-out images that one of Algorithm 4's vectors fools.

    References:
        Thesis, Section 4.3.1 and Figure 4.5. S.-M. Moosavi-Dezfooli et al., "Universal adversarial
        perturbations", arXiv:1610.08401.
    """
    studies = universal_studies(network, data, settings, executor)
    sets = executor.each(lambda study: _sets(study, settings), studies)
    made = [each["cosine"] for each in sets]
    pairs = stack([_pairs(each) for each in sets])
    statistics = {f"mean |{name}|": mean(name) for name in pairs if "largest" not in name}
    statistics |= {f"largest |{name}|": mean(f"largest {name}") for name in sets[0]}
    numbers = paired_bootstrap(pairs, statistics, resamples=settings.resamples)
    fooled = [
        study.fooled(study.test.images, vectors).mean(dim=0)
        for study, vectors in zip(studies, made, strict=True)
    ]
    spread = {"fool_val_smallest": minimum("fooled"), "fool_val_largest": maximum("fooled")}
    numbers |= paired_bootstrap(
        {"fooled": torch.stack(fooled)}, spread, resamples=settings.resamples
    )
    return Findings(
        numbers=measured(numbers),
        tables={"figure_4_5": _table(studies, made, fooled)},
        figures={"figure_4_5": _figure(studies[0], made[0], fooled[0], network, settings)},
        tensors={"vectors": torch.stack(made)},
        notes=_notes(studies, settings),
    )


def _sets(study: UniversalStudy, settings: Settings) -> dict[str, Tensor]:
    """Name -> vectors (K, C, H, W): Algorithm 4's, random ones, and the gradient maker's."""
    norm = settings.norm
    made = {
        maker: torch.cat([one.perturbation for one in study.vectors(norm, maker)])
        for maker in makers_of(norm)
    }
    vectors = made[ALGORITHM]
    drawn = random_vectors(vectors.shape[1:], norm, 1.0, len(vectors))
    sets = {"cosine": vectors, "random cosine": drawn}
    return sets | ({f"cosine ({GRADIENT})": made[GRADIENT]} if GRADIENT in made else {})


def _pairs(sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> (K (K - 1) / 2,) |cosine| of the pairs of vectors; ``largest`` holds one value."""
    values = {}
    for name, vectors in sets.items():
        rows, columns = torch.triu_indices(len(vectors), len(vectors), offset=1)
        values[name] = cosines(vectors)[rows, columns].abs()
        # One value of each training seed: resampling pairs would draw the largest one or not.
        values[f"largest {name}"] = torch.full_like(values[name], float(values[name].max()))
    return values


def _table(
    studies: Sequence[UniversalStudy], made: Sequence[Tensor], fooled: Sequence[Tensor]
) -> pd.DataFrame:
    """One row per pair of shufflings and training seed."""
    rows: list[Mapping[str, float]] = []
    for study, vectors, shares in zip(studies, made, fooled, strict=True):
        inner = cosines(vectors)
        rows += [
            {
                "seed": study.seed,
                "first": i,
                "second": j,
                "cosine": float(inner[i, j]),
                "fool_val_first": float(shares[i]),
                "fool_val_second": float(shares[j]),
            }
            for i, j in combinations(range(len(vectors)), 2)
        ]
    return pd.DataFrame(rows)


def _figure(
    study: UniversalStudy, vectors: Tensor, shares: Tensor, network: Network, settings: Settings
) -> Figure:
    """Figure 4.5: the vectors side by side."""
    panels: list[Panel | None] = [
        Panel(v, f"fools {share:.0%}", perturbation=True)
        for v, share in zip(vectors, shares.tolist(), strict=True)
    ]
    return image_grid(
        [panels],
        title=f"Universal perturbations of {len(vectors)} orders of X "
        f"({norm_sign(settings.norm)}), {network.name}, seed {study.seed}",
        column_titles=[f"order {k}" for k in range(len(vectors))],
    )


def _notes(studies: Sequence[UniversalStudy], settings: Settings) -> list[str]:
    count, d = settings.orders * (settings.orders - 1) // 2, studies[0].train.images[0].numel()
    return [
        *made_by_both(studies, settings.norm),
        f"{settings.orders} vectors of {norm_name(settings.norm)} norm a training seed by "
        f"Algorithm 4, which differ by the order of X alone: {count} pairs each; intervals are "
        "over pairs and training seeds. 'largest' is the mean over training seeds of each one's "
        "largest pair: the largest of few pairs has no interval over pairs. The table has the "
        "signs. The thesis does not name the norm.",
        f"The images have {d} dimensions, the thesis' 150,528; 'random "
        "cosine' is what "
        "vectors without anything in common have in so many.",
    ]
