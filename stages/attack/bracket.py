"""The distance to the boundary between a proved lower bound and a found upper one.

Beyond the thesis: no attack says how far its perturbation is from the smallest one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import literal
from pipeline.statistics import Estimate, Statistic, mean, mean_of_ratios, padded, share, stack
from pipeline.studies.attacking import alignments, deepfool_of, run
from pipeline.studies.brackets import Judged, bracket_figure
from pipeline.studies.training import trained
from pipeline.tables import norm_name
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.certify import bound_cost, exact_distance, lower_bounds
from robustness_geometry.checks import InputError, check_count, check_positive
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.models import fc500_150_10
from robustness_geometry.norms import norms
from robustness_geometry.training import Recipe
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Network, Split

__all__ = ["SECTION", "Settings", "bracket", "exactly_closed", "proved"]

SECTION = "Section 3.2.3, and beyond the thesis"

NORMS = (2.0, math.inf)

HIDDEN = (24, 50)
"""Units of each of the two hidden layers of the networks whose exact distance is searched for."""

LARGEST_INPUT, LARGEST_OUTPUT, TRAINED_ON = 4096, 100, 10_000
"""Entries of an image, and classes, up to which the small networks are made; their images."""

STATUSES = ("unresolved", "bracket", "exact")

METHODS = {"nearest": "nearest", "df": "DeepFool"}
"""Suffix of the numbers -> the name of the method in tables and figures."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attack: the attack under study; if it is a DeepFool, its options also make the DeepFool of
            the table, with norms 2 and inf and without clipping.
        samples: number of held-out images that are attacked.
        work: multiply-adds that the lower bounds of one training seed in one norm may take: as many
            of the images are certified as that allows, none where one image takes more.
        steps: gradient steps in the slopes of the lower bounds.
        evaluations: largest number of radii that the lower bounds try for whole balls.
        cuts: number of parts of balls that they try; 0 where not one image could be certified
            otherwise.
        exact_samples: number of held-out images whose exact distance is searched for, on each of
            the two small networks.
        nodes: largest number of subproblems of that search, in each image: a limit on work, not on
            time, so that two runs agree.
        exact_linf: whether to search in l_inf too, where a subproblem takes ten times as long.
        epochs: epochs of the training of the two small networks.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    samples: int = 100
    work: float = 1e13
    steps: int = 0
    evaluations: int = 3
    cuts: int = 40
    exact_samples: int = 40
    nodes: int = 50_000
    exact_linf: bool = True
    epochs: int = 20
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("samples", "evaluations", "exact_samples", "nodes", "epochs", "resamples"):
            check_count(name, getattr(self, name))
        check_count("steps", self.steps, minimum=0)
        check_count("cuts", self.cuts, minimum=0)
        check_positive("work", self.work)

    @property
    def bounds(self) -> dict[str, Any]:
        """The options of the lower bounds."""
        return {"steps": self.steps, "evaluations": self.evaluations, "cuts": self.cuts}


def bracket(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Bracket the distance of each image to the boundary, and close the bracket on small networks.

    The lower end is proved (:func:`robustness_geometry.certify.lower_bounds`), the upper one found
    by :func:`robustness_geometry.attacks.nearest`. Two small ReLU networks are trained on the same
    images; there the exact distance is known, and with it what each attack lacks.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs attacks and certifications.

    Returns:
        The mean ratio of lower to upper end, of DeepFool's and nearest's distance to the exact one,
        and cos(r, n) beside them; the distances of all images as tables and figures.
    """
    images = held_out(data, settings.samples).images
    found = [_bracketed(network, images, norm, settings, executor) for norm in NORMS]
    small, notes = _small(data, settings, executor)
    numbers, timings = _numbers([*found, *small], settings.resamples)
    title = f"Proved and found distances, {literal(network.name)}"
    figures = {"distances": bracket_figure(found, title)}
    if small:
        figures["exact"] = bracket_figure(small, "Two small networks: exact distances")
    tables = {"distances": pd.DataFrame([_row(each, numbers) for each in found])}
    if small:
        tables["exact"] = pd.DataFrame([_row(each, numbers) for each in small])
    tables["images"] = pd.concat([_by_image(each) for each in [*found, *small]])
    return Findings(
        numbers=numbers,
        timings=timings,
        tables=tables,
        figures=figures,
        notes=[*_notes(network.name, found, settings), *notes],
    )


def proved(
    model: Classifier, images: Images, *, norm: float, steps: int, evaluations: int, cuts: int
) -> Tensor:
    """The lower bounds (n,) alone, as a function that the executor can key."""
    return lower_bounds(
        model, images, norm=norm, steps=steps, evaluations=evaluations, cuts=cuts
    ).radii


def exactly_closed(
    model: Classifier, images: Images, *, norm: float, nodes: int
) -> dict[str, Tensor]:
    """The exact distances, as far as ``nodes`` subproblems go, with the status as a number."""
    found = exact_distance(model, images, norm=norm, time_limit=None, nodes=nodes)
    status = torch.tensor([STATUSES.index(each) for each in found.status], dtype=torch.float64)
    return {"low": found.lower, "high": found.upper, "status": status, "nodes": found.nodes}


def _attacked(
    model: Classifier, images: Images, norm: float, attack: Attack, executor: Executor
) -> dict[str, Tensor]:
    """The distances that nearest and DeepFool find, with their cos(r, n) and seconds."""
    attacks: dict[str, Attack] = {
        "nearest": partial(nearest, norm=norm),
        "df": deepfool_of(attack, norm=norm, clip=None),
    }
    found = {}
    for name, each in attacks.items():
        mapped = run(each, model, images, executor)
        result = mapped.value
        found[name] = valid(norms(result.perturbations, norm), result.success)
        found[f"seconds {name}"] = mapped.seconds
        found[f"alignment {name}"] = alignments(each, result, model, images, executor, norm=norm)
    return found


def _bracketed(
    network: Network, images: Images, norm: float, settings: Settings, executor: Executor
) -> Judged:
    """The brackets of a network's images in one norm."""
    count, options, refusal = _affordable(network.model, images, settings)
    seeds = []
    for seed, model in sorted(network.models.items()):
        own = executor.for_seed(seed)
        values = _attacked(model, images, norm, settings.attack, own)
        values["lower"] = values["seconds lower"] = torch.full((len(images),), math.nan).double()
        if count:
            mapped = own.cached(
                partial(proved, model, norm=norm, **options), images[:count], chunk=2
            )
            values["lower"] = padded(mapped.value.double(), len(images))
            values["seconds lower"] = padded(mapped.seconds, len(images))
        seeds.append(values)
    return Judged(norm, stack(seeds), count, options["cuts"], refusal)


def _affordable(
    model: Classifier, images: Images, settings: Settings
) -> tuple[int, dict[str, Any], str]:
    """How many images can be certified, with which options; if none, why.

    Where not one image can be certified with parts of balls, whole balls are tried alone.
    """
    cost = math.inf
    for options in (settings.bounds, settings.bounds | {"cuts": 0}):
        try:
            cost = bound_cost(model, tuple(images.shape[1:]), enough=settings.work, **options)
        except InputError as error:
            return 0, options, str(error).partition("; got ")[2] or str(error)
        if cost <= settings.work:
            return min(len(images), int(settings.work // cost)), options, ""
    why = f"one image takes {cost:.1e} multiply-adds or more, above work={settings.work:g}"
    return 0, settings.bounds, why


def _small(data: Dataset, settings: Settings, executor: Executor) -> tuple[list[Judged], list[str]]:
    """The exact distances on the two small networks, and notes on them."""
    size, classes = math.prod(data.shape), len(data.classes)
    if not len(data.train):
        return [], [f"{data.name} has no training images: no exact distances of small networks."]
    if size > LARGEST_INPUT or classes > LARGEST_OUTPUT:
        return [], [
            f"No exact distances: {data.name} has {size} entries an image and {classes} classes; "
            f"the small networks are made up to {LARGEST_INPUT} and {LARGEST_OUTPUT}."
        ]
    order = stratified_order(data.train.labels, "bracket")[:TRAINED_ON]
    part = Split(data.train.images[order], data.train.labels[order])
    own = Dataset(data.name, part, data.test, data.classes, data.mean, data.std)
    images = held_out(data, settings.exact_samples).images
    recipe = Recipe(epochs=settings.epochs, batch_size=50, learning_rate=0.02)
    found, errors = [], []
    for units in HIDDEN:
        factory = partial(fc500_150_10, hidden=(units, units))
        model, history = trained(factory, own, recipe, 0, executor)
        errors.append(f"{units}-{units}: {history['test_error'][-1]:.1%}")
        for norm in NORMS if settings.exact_linf else NORMS[:1]:
            found.append(_solved(model, images, units, norm, settings, executor))
    return found, [
        f"Two networks of {HIDDEN[0]}-{HIDDEN[0]} and {HIDDEN[1]}-{HIDDEN[1]} hidden units were "
        f"trained on {len(part)} images for {settings.epochs} epochs (test error "
        f"{', '.join(errors)}). Their exact distances come from branch and bound with at most "
        f"{settings.nodes} subproblems an image. exact: both ends agree to 1e-6 of the distance; "
        "bracket: the search ended before; unresolved: no boundary was found. Ratios to the exact "
        "distance, and its mean, are over the images that are exact."
    ]


def _solved(
    model: Classifier,
    images: Images,
    units: int,
    norm: float,
    settings: Settings,
    executor: Executor,
) -> Judged:
    """The exact distances of one small network in one norm."""
    values = _attacked(model, images, norm, settings.attack, executor)
    options: dict[str, Any] = {"norm": norm, **settings.bounds}
    lower = executor.cached(partial(proved, model, **options), images)
    values |= {"lower": lower.value, "seconds lower": lower.seconds}
    search = partial(exactly_closed, model, norm=norm, nodes=settings.nodes)
    found = executor.cached(search, images, chunk=1)
    values |= {name: value.double() for name, value in found.value.items()}
    values["seconds exact"] = found.seconds
    values["low"] = torch.maximum(values["low"], values["lower"]).minimum(values["high"])
    values["closed"] = (values["status"] == STATUSES.index("exact")).double()
    values["exact"] = values["high"].masked_fill(values["closed"] == 0, math.nan)
    name = f"{units}-{units}"
    return Judged(norm, stack([values]), len(images), settings.cuts, "", name)


def _numbers(
    found: Sequence[Judged], resamples: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """The numbers and the seconds an image, each with its interval."""
    numbers: dict[str, Estimate] = {}
    timings: dict[str, Estimate] = {}
    for each in found:
        statistics = _statistics(each)
        estimates = measured(paired_bootstrap(each.samples, statistics, resamples=resamples))
        for name, estimate in estimates.items():
            kept = timings if name.startswith("seconds") else numbers
            kept[f"{name} {each.suffix}"] = estimate
    return numbers, timings


def _statistics(judged: Judged) -> dict[str, Statistic]:
    found = {
        "lower / nearest": mean_of_ratios("lower", "nearest"),
        "df / nearest": mean_of_ratios("df", "nearest"),
    }
    methods = ["lower", *METHODS]
    if "exact" in judged.samples:
        pairs = {f"{name} / exact": mean_of_ratios(name, "exact") for name in methods}
        found = pairs | {"share_exact": share("closed")}
        methods.append("exact")
    found |= {f"alignment_{name}": mean(f"alignment {name}") for name in METHODS}
    found |= {f"distance_{name}": mean(name) for name in methods}
    return found | {f"seconds_{name}": mean(f"seconds {name}") for name in methods}


def _row(judged: Judged, numbers: Mapping[str, Estimate]) -> dict[str, object]:
    """One network in one norm: mean distances, their ratios and cos(r, n)."""
    samples = judged.samples
    row: dict[str, object] = {"network": judged.small} if judged.small else {}
    row |= {"norm": norm_name(judged.norm), "images": samples["nearest"].shape[1]}
    if judged.small:
        counts = {"images closed": "exact", "images in a bracket": "bracket"}
        for title, status in (counts | {"images unresolved": "unresolved"}).items():
            row[title] = int((samples["status"] == STATUSES.index(status)).sum())
        row["largest nearest / exact"] = _largest(samples["nearest"] / samples["exact"])
        row["largest DeepFool / exact"] = _largest(samples["df"] / samples["exact"])
        row["subproblems (median)"] = float(samples["nodes"].median())
    else:
        row |= {"seeds": samples["nearest"].shape[0], "certified": judged.certified}
    for name in ("lower", "exact", *METHODS):
        if (found := numbers.get(f"distance_{name} {judged.suffix}")) is not None:
            row[METHODS.get(name, name)] = found.value
    base = "exact" if judged.small else "nearest"
    for name in ("lower", *METHODS):
        if (found := numbers.get(f"{name} / {base} {judged.suffix}")) is not None:
            title = f"{METHODS.get(name, name)} / {base}"
            row |= {title: found.value, f"{title} low": found.low, f"{title} high": found.high}
    for name, title in METHODS.items():
        found = numbers.get(f"alignment_{name} {judged.suffix}")
        row[f"cos(r, n) {title} (mean)"] = math.nan if found is None else found.value
    return row if judged.small else row | {"not certified because": judged.refusal}


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max()) if len(finite) else math.nan


def _by_image(judged: Judged) -> pd.DataFrame:
    """One row per image and training seed."""
    seeds, count = judged.samples["nearest"].shape
    names = ("lower", "low", "exact", *METHODS, *(f"alignment {name}" for name in METHODS))
    titles = {"low": "exact at least", "lower": "lower bound"} | METHODS
    titles |= {f"alignment {name}": f"cos(r, n) {title}" for name, title in METHODS.items()}
    return pd.DataFrame(
        [
            {
                "network": judged.small or "network",
                "norm": norm_name(judged.norm),
                "seed": seed,
                "image": image,
            }
            | {
                titles.get(name, name): float(judged.samples[name][seed, image])
                for name in names
                if name in judged.samples
            }
            for seed in range(seeds)
            for image in range(count)
        ]
    )


def _notes(network: str, found: Sequence[Judged], settings: Settings) -> list[str]:
    notes = [
        "Lower bounds hold for every point of the space, not of [0, 1] alone: neither nearest nor "
        "DeepFool clips. DeepFool's distance holds its overshoot.",
        "A bound's cost is judged beforehand: for each unit in front of a nonlinear layer, the "
        "multiply-adds from it back to the image, twice, times the balls and their parts that are "
        f"tried. Of the images of {network}, as many are certified as {settings.work:.0e} "
        f"multiply-adds allow (a training seed in one norm): {found[0].certified} of "
        f"{found[0].samples['nearest'].shape[1]}, with {found[0].cuts} parts of balls.",
    ]
    refusals = dict.fromkeys(each.refusal for each in found if each.refusal)
    return notes + [f"No lower bounds of {network}: {refusal}." for refusal in refusals]
