"""How much the normals of the decision boundary have in common (Section 6.3.1, Figure 6.3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.evaluation import judged
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, line_figure
from pipeline.statistics import Estimate, exactly, mean, of_means, ratio_of_means, stack
from pipeline.studies.attacking import deepfool_of
from pipeline.studies.curvature import Common, Study, named, studies
from pipeline.studies.synthetic import Affine
from pipeline.tables import columns
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "normals_svd", "unit_normals"]

SECTION = "Section 6.3.1, Remark 2, Figure 6.3"

LEADING = 0.1
"""Share of the singular values that count as the leading ones, as the claim has it."""

COVERED, ENOUGH = 0.9, 0.98
"""Mean share of a normal's length that a subspace has to hold to count as theirs; up to where one is looked for."""

LINEAR_POINTS = 100
"""Points of the binary linear classifier."""


@dataclass(frozen=True)
class Settings(Common):
    """What to measure, beyond what :class:`Common` says.

    Attributes:
        normal_samples: training images whose normals make the matrix N; at most as many held-out
            ones test its span.
    """

    normal_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("normal_samples", self.normal_samples, minimum=20)


@dataclass(frozen=True)
class Spectrum:
    """The singular value decomposition of one training seed's normals.

    Attributes:
        values: (k,) singular values of N, for k images or pixels, whichever are fewer; 0 beyond the
            normals found.
        random: (k,) those of as many random unit vectors.
        inside: (n, k) ||P_m n|| of each image's normal for the first m singular vectors, m = 1 ...
            k; NaN without one.
        random_inside: the same of the random vectors and their own singular vectors.
        unseen: (n', k) the same of held-out normals and N's singular vectors.
    """

    values: Tensor
    random: Tensor
    inside: Tensor
    random_inside: Tensor
    unseen: Tensor

    @property
    def failed(self) -> int:
        """Training images without a perturbation."""
        return int(self.inside[:, 0].isnan().sum())


def normals_svd(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Take the singular values of the matrix of unit normals r / ||r||, beside those of random unit vectors.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attack.

    Returns:
        The share of the squared singular values in the first tenth over that of random vectors;
        ``dimension_90``, the smallest m whose singular vectors hold 90% of a normal's length in the
        mean; and sv_2 / sv_1 of a binary linear classifier.
    """
    found = executor.each(
        lambda study: _spectrum(study, data, settings), studies(network, data, settings, executor)
    )
    k = max(1, int(LEADING * len(found[0].values)))
    most = min(
        max(int((each.inside.nanmean(dim=0) < ENOUGH).sum()) + 1 for each in found),
        len(found[0].values),
    )
    samples = stack([_quantities(each, k, most) for each in found])
    sizes = [name for name in samples if name.startswith("inside ")]
    classes = len(data.classes)
    statistics = {
        "energy_normals / energy_random": ratio_of_means("energy", "random energy"),
        "energy_normals": mean("energy"),
        "energy_random": mean("random energy"),
        "dimension_90": of_means(sizes, _reaching),
        "dimension_90 - classes": of_means(sizes, partial(_beyond, classes)),
        **{f"share_in_{classes}": mean(name) for name in sizes if name == f"inside {classes}"},
        **{
            f"share_in_{classes}_unseen": mean(f"unseen {classes}")
            for name in sizes
            if name == f"inside {classes}"
        },
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    numbers |= {"sv_2 / sv_1, linear": exactly(linear_ratio(), LINEAR_POINTS)}
    return Findings(
        numbers=named(numbers, settings),
        tables={"figure_6_3": _table(found[0]), "energy": _energies(numbers, k)},
        figures={"figure_6_3": _figure(network, found[0]), "inside": _inside(network, found[0])},
        tensors={"singular_values": torch.stack([each.values for each in found]).float()},
        notes=_notes(found, settings, k, len(data.classes)),
    )


def unit_normals(study: Study, images: Images) -> Tensor:
    """The unit normals r / ||r||, (n, d) in float64; NaN for images that the boundary attack does not fool.

    Raises:
        InputError: it fools none.
    """
    attack = deepfool_of(study.settings.boundary_attack, norm=2.0, clip=None)
    result = study.executor.cached(partial(judged, attack, study.model), images).value
    if not bool(result.success.any()):
        refuse(
            "normal_samples",
            f"{len(images)} images without a normal",
            "images that the boundary attack fools",
        )
    found = torch.full((len(images), study.d), math.nan, dtype=torch.float64)
    found[result.success] = _unit(result.perturbations[result.success].double().flatten(1))
    return found


def _spectrum(study: Study, data: Dataset, settings: Settings) -> Spectrum:
    count = settings.normal_samples
    order = stratified_order(data.train.labels, "curvature")[:count]
    images = data.train.images[order] if len(order) else study.known
    normals, unseen = unit_normals(study, images), unit_normals(study, study.unseen[:count])
    drawn = _unit(
        torch.randn(
            normals.shape, generator=seeded("random normals", study.seed), dtype=torch.float64
        )
    )
    drawn = drawn.masked_fill(normals.isnan(), math.nan)  # as many as there are normals
    (values, basis), (random, random_basis) = _spectrum_of(normals), _spectrum_of(drawn)
    return Spectrum(
        values=values,
        random=random,
        inside=_inside_of(normals, basis),
        random_inside=_inside_of(drawn, random_basis),
        unseen=_inside_of(unseen, basis),
    )


def _spectrum_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The singular values (k,), k = min(n, d), of the rows (n, d) that are known, and as many singular vectors.

    Where rows are missing, zeros are added to both, so that the shapes are those of all training
    seeds.
    """
    _, values, basis = torch.linalg.svd(rows[~rows.isnan().any(dim=1)], full_matrices=False)
    lacking = min(rows.shape) - len(values)
    pad = torch.nn.functional.pad
    return pad(values, (0, lacking)), pad(basis, (0, 0, 0, lacking))


def _inside_of(vectors: Tensor, basis: Tensor) -> Tensor:
    return (vectors @ basis.T).square().cumsum(dim=1).sqrt()


def linear_ratio() -> float:
    """sv_2 / sv_1 of the normals of a random binary linear classifier, found by DeepFool in float64."""
    generator = seeded("binary linear classifier")
    weight = torch.randn(1, 50, generator=generator, dtype=torch.float64)
    model = Affine(weight, torch.zeros(1, dtype=torch.float64))
    points = torch.randn(LINEAR_POINTS, 1, 1, 50, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(_unit(deepfool(model, points, norm=2.0).perturbations.flatten(1)))
    return float(values[1] / values[0])


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _quantities(found: Spectrum, k: int, most: int) -> dict[str, Tensor]:
    """Name -> one value a normal."""
    return {
        "energy": found.inside[:, k - 1].square(),
        "random energy": found.random_inside[:, k - 1].square(),
        **{f"inside {m}": found.inside[:, m - 1] for m in range(1, most + 1)},
        **{f"unseen {m}": found.unseen[:, m - 1] for m in range(1, most + 1)},
    }


def _reaching(*shares: Tensor) -> Tensor:
    """The first m at which the mean share is 90%; one more than there are where none is."""
    return 1 + (torch.stack(shares) < COVERED).double().sum(dim=0)


def _beyond(classes: int, *shares: Tensor) -> Tensor:
    return _reaching(*shares) - classes


def _table(found: Spectrum) -> pd.DataFrame:
    count = len(found.values)
    return pd.DataFrame(
        {
            "index": range(1, count + 1),
            "normals": found.values.tolist(),
            "random": found.random.tolist(),
            "share_inside": found.inside.nanmean(dim=0).tolist(),
            "share_inside_unseen": found.unseen.nanmean(dim=0).tolist(),
        }
    )


def _energies(numbers: Mapping[str, Estimate], k: int) -> pd.DataFrame:
    rows = []
    for name in ("energy_normals", "energy_random"):
        estimate = numbers[name]
        rows.append(
            {
                "vectors": name.removeprefix("energy_"),
                "k": k,
                **columns("share", estimate),
                "n": estimate.n,
            }
        )
    return pd.DataFrame(rows)


def _figure(network: Network, found: Spectrum) -> Figure:
    index = range(1, len(found.values) + 1)
    return line_figure(
        {
            "normals of the decision boundary": Line(index, found.values.tolist(), marker=""),
            "random unit vectors": Line(index, found.random.tolist(), style="--", marker=""),
        },
        xlabel="index",
        ylabel="singular value",
        title=f"Singular values of {len(found.inside) - found.failed} unit normals, {network.name}",
        limits=(0, None),
    )


def _inside(network: Network, found: Spectrum) -> Figure:
    index = range(1, found.inside.shape[1] + 1)
    return line_figure(
        {
            "the normals themselves": Line(index, found.inside.nanmean(dim=0).tolist(), marker=""),
            "normals at held-out images": Line(
                index, found.unseen.nanmean(dim=0).tolist(), marker=""
            ),
            "random unit vectors": Line(
                index, found.random_inside.nanmean(dim=0).tolist(), style="--", marker=""
            ),
        },
        xlabel="number m of leading singular vectors",
        ylabel=r"mean of $\|P_m n\|_2$",
        title=f"What the leading singular vectors hold of a normal, {network.name}",
        references={"90%": COVERED},
        limits=(0, 1.02),
        log_x=True,
    )


def _notes(found: Sequence[Spectrum], settings: Settings, k: int, classes: int) -> list[str]:
    first = found[0]
    return [
        f"N: unit r of {len(first.inside) - first.failed} training images ({first.failed} are "
        "without a "
        f"perturbation) in {first.inside.shape[1]} dimensions at most; the thesis does not give "
        "its n. The first tenth "
        f"are k = {k} singular values.",
        f"dimension_90 is the smallest m with mean ||P_m n|| >= {COVERED:g} over the images that "
        "made the span; those "
        "held out are beside it in the table.",
        f"A linear classifier of {classes} classes has its normals in {classes - 1} dimensions.",
        "Figures and the first table are of the first training seed.",
    ]
