"""Correlation of the normals of the decision boundary (Section 6.3.1, Remark 2, Figure 6.3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import judged
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import Line, line_figure
from pipeline.statistics import (
    Estimate,
    exactly,
    mean,
    mean_share,
    median_of_ratios,
    of_means,
    ratio_of_means,
    stack,
)
from pipeline.studies.attacking import deepfool_of
from pipeline.studies.curvature import (
    CurvatureStudy,
    curvature_studies,
    training_split,
    unit,
)
from pipeline.studies.curvature_settings import CurvatureSettings, TrainPoints, UnseenPoints
from pipeline.studies.noise import noise_needed
from pipeline.studies.synthetic import Affine
from pipeline.tables import columns
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import Described, check_count, refuse
from robustness_geometry.geometry import theorem3_radius
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Dataset, Images, Network

__all__ = ["SECTION", "Settings", "normal_images", "normals_svd", "unit_normals"]

SECTION = "Section 6.3.1, Remark 2, Figure 6.3"

LEADING = 0.1
"""Share of the singular values that count as the leading ones, as in the claim."""

COVERED = 0.9
"""Mean share of a normal's length that ``dimension_90`` singular vectors hold."""

ENOUGH = 0.98
"""Mean share of a normal's length beyond which no further singular vectors are looked at."""

DELTA = 0.1
"""Share of the points that Theorem 3 may leave unfooled."""

LINEAR_POINTS = 100
"""Points of the binary linear classifier."""


@dataclass(frozen=True)
class Settings(TrainPoints, UnseenPoints):
    """What to measure.

    As many of the ``samples`` held-out images as make N test its span. Where a data set has no
    training images, ``train_samples`` held-out ones make N.

    Attributes:
        normal_samples: number of training images, at least 20, whose normals make the matrix N.
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
            number of normals.
        random: (k,) singular values of as many random unit vectors.
        inside: (n, k) ||P_m n|| of each image's normal for the first m singular vectors, m = 1 ...
            k; NaN for an image without a normal.
        random_inside: (n, k) the same of the random vectors and their own singular vectors.
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
    """Take the singular values of the unit normals r / ||r||, beside those of random vectors.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attack.

    Returns:
        The share of the squared singular values in the first tenth over that of random vectors;
        ``dimension_90``, the smallest m whose singular vectors hold 90% of a normal's length in the
        mean; Theorem 3's radius for a subspace of that many dimensions, in units of ||r||, beside
        the norm that random noise needs; and sv_2 / sv_1 of a binary linear classifier.

    References:
        Thesis, Section 6.3.1, Remark 2 and Figure 6.3. S.-M. Moosavi-Dezfooli et al., "Universal
        adversarial perturbations", arXiv:1610.08401. S.-M. Moosavi-Dezfooli et al., "Analysis of
        universal adversarial perturbations", arXiv:1705.09554.
    """
    studies = curvature_studies(network, data, settings, executor)
    spectra = executor.each(lambda study: _spectrum(study, data, settings), studies)
    first = spectra[0]
    k = max(1, int(LEADING * len(first.values)))
    # The shares held by 1 ... most singular vectors are quantities of the bootstrap.
    most = min(
        max(int((each.inside.nanmean(dim=0) < ENOUGH).sum()) + 1 for each in spectra),
        len(first.values),
    )
    samples = stack([_quantities(each, k, most) for each in spectra])
    sizes = [name for name in samples if name.startswith("inside ")]
    classes = len(data.classes)
    statistics = {
        "energy_normals / energy_random": ratio_of_means("energy", "random energy"),
        "energy_normals": mean("energy"),
        "energy_random": mean("random energy"),
        "dimension_90": of_means(sizes, _reaching),
        "dimension_90 - classes": of_means(sizes, partial(_beyond, classes)),
        **{
            f"share_in_{classes}": mean_share(name) for name in sizes if name == f"inside {classes}"
        },
        **{
            f"share_in_{classes}_unseen": mean_share(f"unseen {classes}")
            for name in sizes
            if name == f"inside {classes}"
        },
    }
    numbers = paired_bootstrap(samples, statistics, resamples=settings.resamples)
    numbers |= {"sv_2 / sv_1, linear": exactly(linear_ratio(), LINEAR_POINTS)}
    numbers |= _theorem3(studies, numbers["dimension_90"], settings)
    return Findings(
        numbers=measured(numbers),
        tables={"figure_6_3": _table(first), "energy": _energies(numbers, k)},
        figures={"figure_6_3": _figure(network, first), "inside": _inside(network, first)},
        tensors={"singular_values": torch.stack([each.values for each in spectra]).float()},
        notes=_notes(first, numbers, settings, k, classes),
    )


def _theorem3(
    studies: Sequence[CurvatureStudy[Settings]], reached: Estimate, settings: Settings
) -> dict[str, Estimate]:
    """Theorem 3's radius in units of ||r||, and the norm that random noise needs in these units.

    Args:
        studies: one per training seed.
        reached: the smallest dimension m of S_f in which a normal has 1 - xi = 90% of its length.
        settings: for the number of resamples.
    """
    samples = []
    for study in studies:
        lengths = norms(study.near_train.perturbations).double()
        needed = noise_needed(study.model, study.train.images, study.executor)
        samples.append({"noise": needed, "r": lengths})
    ratio = {"noise / r": median_of_ratios("noise", "r")}
    numbers = paired_bootstrap(stack(samples), ratio, resamples=settings.resamples)
    radius = theorem3_radius(round(reached.value), DELTA, 1 - COVERED)
    return numbers | {
        "theorem3_radius / r": exactly(radius),
        "theorem3_radius / noise": exactly(radius / numbers["noise / r"].value),
    }


def normal_images(study: CurvatureStudy[TrainPoints], data: Dataset, count: int) -> Images:
    """``count`` training images whose normals are taken; without any, those of the study."""
    chosen = training_split(data, count).images
    return chosen if len(chosen) else study.train.images


def unit_normals(study: CurvatureStudy[CurvatureSettings], images: Images) -> Tensor:
    """The unit normals r / ||r||, (n, d) in float64.

    They are NaN for images that the boundary attack does not fool.

    Raises:
        InputError: it fools none.
    """
    attack = deepfool_of(study.settings.boundary_attack, norm=2.0, clip=None)
    result = study.executor.cached(partial(judged, attack, study.model), images).value
    if not bool(result.success.any()):
        refuse(
            "normal_samples",
            Described(f"{len(images)} images without a normal"),
            "images of which the boundary attack fools at least one",
        )
    normals = torch.full((len(images), study.d), math.nan, dtype=torch.float64)
    normals[result.success] = unit(result.perturbations[result.success].double().flatten(1))
    return normals


def _spectrum(study: CurvatureStudy[Settings], data: Dataset, settings: Settings) -> Spectrum:
    """The singular values of one training seed's normals, and what their vectors hold."""
    count = settings.normal_samples
    normals = unit_normals(study, normal_images(study, data, count))
    unseen = unit_normals(study, study.test.images[:count])
    generator = seeded("random normals", study.seed)
    drawn = unit(torch.randn(normals.shape, generator=generator, dtype=torch.float64))
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
    """The singular values (k,), k = min(n, d), and vectors (k, d) of those rows (n, d) not NaN.

    Where rows are NaN, zeros are added to both, so that their shapes are those of all training
    seeds.
    """
    _, values, basis = torch.linalg.svd(rows[~rows.isnan().any(dim=1)], full_matrices=False)
    lacking = min(rows.shape) - len(values)
    pad = torch.nn.functional.pad
    return pad(values, (0, lacking)), pad(basis, (0, 0, 0, lacking))


def _inside_of(vectors: Tensor, basis: Tensor) -> Tensor:
    """(n, k) ||P_m v|| for the first m = 1 ... k rows of the basis."""
    return (vectors @ basis.T).square().cumsum(dim=1).sqrt()


def linear_ratio() -> float:
    """sv_2 / sv_1 of DeepFool's normals of a random binary linear classifier, in float64."""
    generator = seeded("binary linear classifier")
    weight = torch.randn(1, 50, generator=generator, dtype=torch.float64)
    model = Affine(weight, torch.zeros(1, dtype=torch.float64))
    points = torch.randn(LINEAR_POINTS, 1, 1, 50, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(
        unit(deepfool(model, points, norm=2.0, prune=None).perturbations.flatten(1))
    )
    return float(values[1] / values[0])


def _quantities(spectrum: Spectrum, k: int, most: int) -> dict[str, Tensor]:
    """Name -> one value per normal."""
    return {
        "energy": spectrum.inside[:, k - 1].square(),
        "random energy": spectrum.random_inside[:, k - 1].square(),
        **{f"inside {m}": spectrum.inside[:, m - 1] for m in range(1, most + 1)},
        **{f"unseen {m}": spectrum.unseen[:, m - 1] for m in range(1, most + 1)},
    }


def _reaching(*shares: Tensor) -> Tensor:
    """The first m at which the mean share is 90%; where there is none, one more than there are."""
    return 1 + (torch.stack(shares) < COVERED).double().sum(dim=0)


def _beyond(classes: int, *shares: Tensor) -> Tensor:
    return _reaching(*shares) - classes


def _table(spectrum: Spectrum) -> pd.DataFrame:
    count = len(spectrum.values)
    return pd.DataFrame(
        {
            "index": range(1, count + 1),
            "normals": spectrum.values.tolist(),
            "random": spectrum.random.tolist(),
            "share_inside": spectrum.inside.nanmean(dim=0).tolist(),
            "share_inside_unseen": spectrum.unseen.nanmean(dim=0).tolist(),
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


def _figure(network: Network, spectrum: Spectrum) -> Figure:
    """Figure 6.3: the singular values."""
    count = len(spectrum.inside) - spectrum.failed
    index = range(1, len(spectrum.values) + 1)
    return line_figure(
        {
            "normals of the decision boundary": Line(index, spectrum.values.tolist(), marker=""),
            "random unit vectors": Line(index, spectrum.random.tolist(), style="--", marker=""),
        },
        xlabel="index",
        ylabel="singular value",
        title=f"Singular values of {count} unit normals, {network.name}",
        limits=(0, None),
    )


def _inside(network: Network, spectrum: Spectrum) -> Figure:
    index = range(1, spectrum.inside.shape[1] + 1)
    return line_figure(
        {
            "the normals themselves": Line(
                index, spectrum.inside.nanmean(dim=0).tolist(), marker=""
            ),
            "normals at held-out images": Line(
                index, spectrum.unseen.nanmean(dim=0).tolist(), marker=""
            ),
            "random unit vectors": Line(
                index, spectrum.random_inside.nanmean(dim=0).tolist(), style="--", marker=""
            ),
        },
        xlabel="number m of leading singular vectors",
        ylabel=r"mean of $\|P_m n\|_2$",
        title=f"What the leading singular vectors hold of a normal, {network.name}",
        references={"90%": COVERED},
        limits=(0, 1.02),
        log_x=True,
    )


def _notes(
    first: Spectrum, numbers: Mapping[str, Estimate], settings: Settings, k: int, classes: int
) -> list[str]:
    radius, noise = numbers["theorem3_radius / r"].value, numbers["noise / r"].value
    vacuous = (
        "more than random noise needs, so that the bound is vacuous here"
        if radius >= noise
        else "less than random noise needs"
    )
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
        f"Theorem 3 for {numbers['dimension_90'].value:.0f} dimensions, 1 - xi = {COVERED:g} and "
        f"delta = {DELTA:g}: a vector of norm {radius:.3g} ||r|| fools. Plain random noise needs "
        f"{noise:.3g} ||r||, in the median over training images: the "
        f"theorem's norm is {vacuous}. Theorem 4 asks for curvature above 0 along S_c at the "
        "closest points, which experiment sc_average_curvature measures.",
        "Figures and the first table are of the first training seed.",
    ]
