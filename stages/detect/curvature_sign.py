"""Table 7.2: the sign of the boundary's curvature near clean and near perturbed images.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import bar_figure, histogram_figure
from pipeline.statistics import Estimate, Statistic, median, share, stack
from pipeline.studies.detector import (
    POINTS,
    DetectorSettings,
    DetectorStudy,
    common_notes,
    detector_studies,
    moved,
)
from pipeline.studies.detector_boundary import (
    along_random_directions,
    of_other_classes,
    on_lines_to,
    on_ways_back,
)
from pipeline.tables import interval, shown
from robustness_geometry.checks import check_count
from robustness_geometry.geometry import Boundary
from robustness_geometry.norms import norms
from robustness_geometry.types import Dataset, Images, Network, Perturbed, predict

__all__ = ["SECTION", "Settings", "curvature_sign"]

SECTION = "Section 7.5, Table 7.2"

KINDS = {
    "original": ("clean image x", 0.0),
    "perturbed": ("perturbed image x + r", 1.0),
    "doubled": ("x + 2r", 2.0),
}
"""Suffix of the numbers -> name of the image in tables and figures, and its multiple of r."""

SIGNS = {"original": "negative", "perturbed": "positive", "doubled": "positive"}
"""Suffix of the numbers -> the sign that the text expects of F = f_other - f_own."""

ELSEWHERE = {
    "closest": "closest point",
    "crossing": "DeepFool's crossing",
    "other": "crossing towards an image of another class",
    "random": "crossing along a random direction",
}
"""Part of the numbers' names -> boundary point of a clean image in tables and figures."""

OUTPUT = "logits"
"""F is a difference of logits; that of probabilities has the same boundary and curvature."""


@dataclass(frozen=True)
class Settings(DetectorSettings):
    """What to measure, beyond the settings that all experiments of the stage share.

    Attributes:
        control_samples: number of the images of both sets, from the first on, on which the controls
            are measured: x + 2r, and boundary points that are not the closest, at least 2.
    """

    control_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("control_samples", self.control_samples, minimum=2)


def curvature_sign(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure for which share of images the closest boundary bends the way that Table 7.2 says.

    The sign is that of the mean curvature of F = f_other - f_own at a boundary point. According to
    the text it is negative near clean images and positive near perturbed ones. Beside the closest
    point stand other points of the boundary.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs the attack and the curvatures.

    Returns:
        The shares of images with the expected sign, median curvatures, distances and cos(r, n), and
        how near the boundary points of a clean and of its perturbed image are; the shares of
        negative curvatures at other boundary points; the curvatures (seeds, images) as tensors.
    """
    studies = detector_studies(network, data, settings, executor)
    trials = _trials(studies[0])
    h = float(trials.loc[trials["chosen"], "h"].iloc[0])
    samples = stack(executor.each(lambda study: _quantities(study, h), studies))
    numbers = measured(paired_bootstrap(samples, _statistics(), resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"table_7_2": _table(numbers), "elsewhere": _elsewhere(numbers), "steps": trials},
        figures={
            "curvatures": _histogram(network, samples),
            "elsewhere": _bars(network, numbers),
        },
        tensors={f"kappa_{kind}": samples[f"kappa {kind}"].float() for kind in KINDS},
        notes=_notes(studies, h, numbers, samples),
    )


def _near(
    study: DetectorStudy[Settings], images: Images, attacked: Perturbed, point: str, kind: str
) -> Boundary:
    """The boundary points of one of KINDS of images; of x + 2r only for the controls."""
    beyond = moved(images, attacked, KINDS[kind][1])
    if kind == "doubled":
        few = study.settings.control_samples
        return study.boundary(beyond[:few], point)
    if kind == "original" or point == "crossing":
        return study.boundary(beyond, point)
    # x + r lies so near to the boundary that its way back is as good a start as any.
    return study.executor.cached(partial(on_ways_back, study.model), beyond, images).value


def _others(study: DetectorStudy[Settings], images: Images) -> dict[str, Boundary]:
    """Boundary points of clean images, of the controls, that no attack has looked for."""
    executor, model, images = study.executor, study.model, images[: study.settings.control_samples]
    labels = executor.cached(partial(predict, model), images).value
    others = of_other_classes(images, labels)
    random = executor.cached(partial(along_random_directions, model), images, randomness=True)
    return {
        "other": executor.cached(partial(on_lines_to, model), images, others).value,
        "random": random.value,
    }


def _trials(study: DetectorStudy[Settings]) -> pd.DataFrame:
    """What every step h gives on the calibration images; the best one is chosen."""
    images = study.train.images
    curved = {}
    for point in POINTS:
        perturbed = study.perturbed(images, point)
        for kind in ("original", "perturbed"):
            boundary = _near(study, images, perturbed, point, kind)
            values = study.curvature_of(boundary, OUTPUT, study.steps)
            curved[kind, point] = values.masked_fill(~perturbed.success[:, None], float("nan"))
    for name, boundary in _others(study, images).items():
        curved["original", name] = study.curvature_of(boundary, OUTPUT, study.steps)
    rows = []
    for index, (factor, h) in enumerate(zip(study.settings.h_factors, study.steps, strict=True)):
        negative = {case: _negative(values[:, index]) for case, values in curved.items()}
        row = {
            "h": h,
            "h / default": factor,
            "images": int((~curved["original", "closest"][:, index].isnan()).sum()),
        }
        row |= {
            f"negative near {KINDS[kind][0]}, {ELSEWHERE[point]}": share_
            for (kind, point), share_ in negative.items()
        }
        expected = negative["original", "closest"] + 1 - negative["perturbed", "closest"]
        rows.append(row | {"expected sign": expected / 2})
    table = pd.DataFrame(rows)
    table["chosen"] = table.index == table["expected sign"].fillna(0).idxmax()
    return table


def _negative(kappa: Tensor) -> float:
    """The share of curvatures (n,) below 0, among those that were measured."""
    return float(valid((kappa < 0).double(), ~kappa.isnan()).nanmean())


def _quantities(study: DetectorStudy[Settings], h: float) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed.

    NaN where the attack failed or no boundary point was found.
    """
    images = study.test.images
    values: dict[str, Tensor] = {}
    for point, suffix in POINTS.items():
        attacked = study.perturbed(images, point)
        near = {kind: _near(study, images, attacked, point, kind) for kind in KINDS}
        for kind in KINDS:
            measures = _measures(study, near[kind], h, f"{kind}{suffix}")
            kept = attacked.success[: len(near[kind])]
            values |= {name: valid(each, kept) for name, each in measures.items()}
        both = ~(values[f"kappa original{suffix}"] + values[f"kappa perturbed{suffix}"]).isnan()
        apart = norms(near["original"].points - near["perturbed"].points)
        back = near["perturbed"].targets == attacked.labels
        values[f"apart{suffix}"] = valid(apart / norms(attacked.perturbations), both)
        values[f"back{suffix}"] = valid(back.double(), both)
    for name, boundary in _others(study, images).items():
        values |= _measures(study, boundary, h, name)
    return values


def _measures(
    study: DetectorStudy[Settings], boundary: Boundary, h: float, name: str
) -> dict[str, Tensor]:
    """Curvature, whether it has the expected sign, distance and cos(r, n) of boundary points."""
    kappa = study.curvature_of(boundary, OUTPUT, (h,))[:, 0]
    known = ~kappa.isnan()
    expected = kappa > 0 if name.startswith(("perturbed", "doubled")) else kappa < 0
    return {
        f"kappa {name}": kappa,
        f"sign {name}": valid(expected.double(), known),
        f"distance {name}": valid(norms(boundary.perturbations), known),
        f"alignment {name}": valid(boundary.angles.cos(), known),
    }


def _statistics() -> dict[str, Statistic]:
    numbers: dict[str, Statistic] = {}
    for suffix in POINTS.values():
        for kind, sign in SIGNS.items():
            name = f"{kind}{suffix}"
            numbers |= {f"share_{sign}_{name}": share(f"sign {name}"), **_medians(name)}
        numbers |= {
            f"share_back_to_original_label{suffix}": share(f"back{suffix}"),
            f"distance_of_boundary_points / norm_of_r{suffix}": median(f"apart{suffix}"),
        }
    for name in ("other", "random"):
        numbers |= {f"share_negative_{name}": share(f"sign {name}"), **_medians(name)}
    return numbers


def _medians(name: str) -> dict[str, Statistic]:
    measures = {"median_kappa": "kappa", "distance": "distance", "alignment": "alignment"}
    return {f"{number}_{name}": median(f"{each} {name}") for number, each in measures.items()}


# Tables, figures and notes


def _row(numbers: Mapping[str, Estimate], sign: str, name: str) -> dict[str, object]:
    """The columns of one kind of boundary points; none if nothing was measured at them."""
    found = numbers.get(f"share_{sign}_{name}")
    if found is None:
        return {}
    medians = {"median kappa": "median_kappa", "distance": "distance", "cos(r, n)": "alignment"}
    values = {column: numbers[f"{each}_{name}"].value for column, each in medians.items()}
    return {"share": found.value, **interval(found), **values}


def _table(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """Table 7.2 for one network at both points, with the control at twice the perturbation."""
    rows = []
    for point, suffix in POINTS.items():
        for kind, sign in SIGNS.items():
            if row := _row(numbers, sign, f"{kind}{suffix}"):
                where = {"boundary near": KINDS[kind][0], "point": point, "sign": sign}
                rows.append({**where, **row})
    return pd.DataFrame(rows)


def _elsewhere(numbers: Mapping[str, Estimate]) -> pd.DataFrame:
    """The share of negative curvatures at several boundary points of clean images."""
    rows = []
    for point, title in ELSEWHERE.items():
        if row := _row(numbers, "negative", _name(point)):
            rows.append({"boundary point": title, "sign": "negative", **row})
    return pd.DataFrame(rows)


def _name(point: str) -> str:
    """What the names of the numbers at a boundary point of clean images end in."""
    return f"original{POINTS[point]}" if point in POINTS else point


def _bars(network: Network, numbers: Mapping[str, Estimate]) -> Figure:
    groups = {}
    for point, title in ELSEWHERE.items():
        if (found := numbers.get(f"share_negative_{_name(point)}")) is not None:
            label = "\n".join(textwrap.wrap(title, width=18))
            groups[label] = {"negative": found}
    return bar_figure(
        groups,
        ylabel="share with negative mean curvature",
        title=f"Boundary points of clean images, {network.name}",
    )


def _histogram(network: Network, samples: Mapping[str, Tensor]) -> Figure:
    """The curvatures on an asinh scale, as they differ in sign and by orders of magnitude."""
    size = samples["kappa original"].abs().nanmedian()
    values = {
        title: (samples[f"kappa {kind}"] / size).asinh() for kind, (title, _) in KINDS.items()
    }
    xlabel = r"asinh$(\bar\kappa\,/\,$median $|\bar\kappa|$ near clean images$)$"
    return histogram_figure(
        values, xlabel=xlabel, title=f"Mean curvature at the closest boundary point, {network.name}"
    )


def _notes(
    studies: Sequence[DetectorStudy[Settings]],
    h: float,
    numbers: Mapping[str, Estimate],
    samples: Mapping[str, Tensor],
) -> list[str]:
    failed = {point: int(samples[f"apart{end}"].isnan().sum()) for point, end in POINTS.items()}
    notes = common_notes(studies, failed)
    notes += [
        "kappa is the mean curvature of F = f_other - f_own (logits) at a boundary point, over "
        f"T = {studies[0].settings.directions} random directions, at h = {h:.3g}: the step with "
        "most expected signs on the calibration images (table steps), which favours the claim a "
        "little. With this F the text of Section 7.5 expects negative near clean and positive near "
        "perturbed images; Table 7.2's rows mean F with the opposite sign.",
        "At `crossing` the boundary point is where DeepFool's way out of the region of the image, "
        "clean or moved, crosses the boundary. Columns distance and cos(r, n) are medians, n the "
        "boundary's normal; cos(r, n) = 1 holds at the closest point of a smooth boundary.",
    ]
    return [*notes, *_said_of_sides(numbers), *_said_of_points(numbers)]


def _said_of_sides(numbers: Mapping[str, Estimate]) -> list[str]:
    """Whether perturbed images see the same boundary from its other side."""
    back = numbers.get("share_back_to_original_label")
    apart = numbers.get("distance_of_boundary_points / norm_of_r")
    doubled = numbers.get("share_positive_doubled")
    if back is None or apart is None or doubled is None:
        return []
    return [
        "Near x + r it is mostly the same boundary seen from its other side, which turns the sign "
        f"by definition: the boundary leads back to the original label for {shown(back)} of the "
        f"images, at a point {shown(apart)} ||r|| (median) away from that of the clean image. The "
        "control is x + 2r, as far beyond the boundary as x is before it: there the sign is "
        f"positive for {shown(doubled)}."
    ]


def _said_of_points(numbers: Mapping[str, Estimate]) -> list[str]:
    """How the share of negative curvatures depends on the boundary point."""
    words = []
    for point, title in ELSEWHERE.items():
        if (found := numbers.get(f"share_negative_{_name(point)}")) is not None:
            distance = numbers[f"distance_{_name(point)}"].value
            cosine = numbers[f"alignment_{_name(point)}"].value
            words.append(f"{title} {shown(found)}, at {distance:.3g} with cos(r, n) = {cosine:.2f}")
    return [
        "Share of clean images with negative curvature, with the median distance of the point, "
        f"from the closest point to those farther away: {'; '.join(words)} (table elsewhere). A "
        "closest point of a piecewise linear boundary cannot lie on a kink of positive curvature, "
        "as no ball inside the region reaches into such a corner: the negative sign belongs to "
        "closest points, not to the boundary at large."
    ]
