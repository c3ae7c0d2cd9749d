"""Experiments and claims as the page shows them, prepared for its template."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.claims import ALL, Claim, Experiment
from pipeline.report import files
from pipeline.report.beside import BesideTable, Cell, Material, beside_tables, cell, thesis_value
from pipeline.report.grounds import GROUNDS
from pipeline.report.origins import Origin
from pipeline.report.results import Measured
from pipeline.report.text import CHAPTERS, bounds_text, counts_text, interval_text
from pipeline.report.verdicts import Judgement, Outcome, Verdict
from pipeline.report.words import NOT_TESTED

__all__ = [
    "ChapterView",
    "ClaimView",
    "ExperimentView",
    "JudgementView",
    "NumbersTable",
    "OutcomeView",
    "TestView",
    "beyond_views",
    "chapter_views",
    "claim_view",
]


@dataclass(frozen=True)
class NumbersTable:
    """Every number of an experiment on every network."""

    networks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class OutcomeView:
    """The outcome of a test; ``mark`` places interval, value and thresholds on a line, 0 to 100."""

    outcome: Outcome
    value: str
    interval: str
    bounds: str
    counts: str
    mark: Mapping[str, object] | None


@dataclass(frozen=True)
class JudgementView:
    """A claim on one network."""

    judgement: Judgement
    decides: bool
    outcomes: tuple[OutcomeView, ...]


@dataclass(frozen=True)
class ClaimView:
    """A claim, the number of the thesis, ours beside it, and the judgement on each network."""

    claim: Claim
    verdict: Verdict
    thesis: str
    ours: Cell
    judgements: tuple[JudgementView, ...]


@dataclass(frozen=True)
class TestView:
    """A distinct test and the claims that share it, that on the nearest ground first."""

    claims: tuple[ClaimView, ...]

    @property
    def first(self) -> ClaimView:
        """The claim whose verdict stands for the test."""
        return self.claims[0]


@dataclass(frozen=True)
class ExperimentView:
    """An experiment with all its results."""

    experiment: Experiment
    measured: tuple[Measured, ...]
    absent: tuple[str, ...]
    counts: str
    beside: tuple[BesideTable, ...]
    figures: tuple[files.Figure, ...]
    tables: tuple[files.Table, ...]
    notes: tuple[tuple[str, str], ...]
    numbers: NumbersTable
    tests: tuple[TestView, ...]
    untested: tuple[ClaimView, ...]
    claims: tuple[ClaimView, ...]
    origins: tuple[Origin, ...] = ()
    coming: tuple[str, ...] = ()

    @property
    def stale(self) -> frozenset[str]:
        """The networks on which what was measured is out of date."""
        return frozenset(origin.network for origin in self.origins if origin.stale)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The stages, as dvc.yaml names them, that a run under way still is to run for it."""
        stage = self.experiment.run_by
        return tuple(stage if name == ALL else f"{stage}@{name}" for name in self.coming)


@dataclass(frozen=True)
class ChapterView:
    """A chapter of the thesis."""

    number: int
    title: str
    experiments: tuple[ExperimentView, ...]

    @property
    def measured(self) -> bool:
        """Whether any of its experiments has results."""
        return any(experiment.measured for experiment in self.experiments)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The stages that a run under way still is to run for the chapter."""
        return tuple(dict.fromkeys(name for each in self.experiments for name in each.awaited))


def chapter_views(material: Material) -> list[ChapterView]:
    """The chapters in order; an experiment stands in the chapter of its first claim."""
    chapters: dict[int, list[ExperimentView]] = {number: [] for number in CHAPTERS}
    for experiment in material.experiments:
        if (chapter := _chapter(experiment, material)) is not None:
            chapters[chapter].append(_experiment(experiment, material))
    return [
        ChapterView(number, CHAPTERS[number], tuple(found)) for number, found in chapters.items()
    ]


def beyond_views(material: Material) -> list[ExperimentView]:
    """The experiments beyond the thesis: those that have results, and that no claim names."""
    declared = {experiment.name: experiment for experiment in material.experiments}
    views = []
    for name, measured in material.results.items():
        experiment = declared.get(name) or _undeclared(name, next(iter(measured.values())))
        if _chapter(experiment, material) is None:
            views.append(_experiment(experiment, material))
    return views


def _chapter(experiment: Experiment, material: Material) -> int | None:
    """The chapter of an experiment's first claim; None for one without claims."""
    claims = (claim for claim, _ in material.judged if claim.experiment == experiment.id)
    first = next(claims, None)
    return None if first is None else first.chapter


def _undeclared(name: str, measured: Measured) -> Experiment:
    """An experiment that the claims file does not know, as far as its results describe it."""
    stage = measured.stage.removesuffix("_transfer")
    return Experiment(
        id=name,
        file=f"stages/{stage}/{name}.py",
        title=name.replace("_", " ").capitalize(),
        where=measured.section,
        measures="",
        thesis_networks="",
        thesis_samples="",
    )


def _experiment(experiment: Experiment, material: Material) -> ExperimentView:
    own = [
        (claim, verdict) for claim, verdict in material.judged if claim.experiment == experiment.id
    ]
    names = [*(each.name for each in material.experiments), *material.results]
    views = tuple(claim_view(claim, verdict, material) for claim, verdict in own)
    found = material.results.get(experiment.name, {})
    networks = (ALL,) if experiment.across else material.networks
    measured = tuple(found[network] for network in networks if network in found)
    absent = tuple(network for network in networks if network not in found)
    return ExperimentView(
        experiment=experiment,
        measured=measured,
        absent=absent,
        counts=counts_text((e.n, e.seeds) for m in measured for e in m.numbers.values()),
        beside=tuple(beside_tables(experiment, material)) if measured else (),
        figures=tuple(
            figure for m in measured for figure in files.figures(m, experiment.name, names)
        ),
        tables=tuple(table for m in measured for table in files.tables(m, experiment.name, names)),
        notes=_notes(measured),
        numbers=_numbers(measured),
        tests=_tests(views),
        untested=tuple(view for view in views if view.verdict.verdict == NOT_TESTED),
        claims=views,
        origins=tuple(material.page.origin(each) for each in measured),
        coming=material.page.still_coming(experiment, absent),
    )


def _tests(views: Sequence[ClaimView]) -> tuple[TestView, ...]:
    groups: dict[str, list[ClaimView]] = {}
    for view in views:
        if view.verdict.verdict != NOT_TESTED:
            groups.setdefault(view.verdict.test, []).append(view)
    return tuple(
        TestView(tuple(sorted(shared, key=lambda view: GROUNDS.index(view.verdict.ground))))
        for shared in groups.values()
    )


def _notes(measured: Sequence[Measured]) -> tuple[tuple[str, str], ...]:
    """Each note with the networks that it belongs to; a note on all of them names none."""
    networks: dict[str, list[str]] = {}
    for each in measured:
        for note in each.notes:
            networks.setdefault(note, []).append(each.network)
    return tuple(
        (note, "" if len(on) == len(measured) else ", ".join(on)) for note, on in networks.items()
    )


def _numbers(measured: Sequence[Measured]) -> NumbersTable:
    names = dict.fromkeys(name for m in measured for name in m.numbers)
    rows = tuple((name, tuple(cell(m, name) for m in measured)) for name in names)
    return NumbersTable(tuple(m.network for m in measured), rows)


def claim_view(claim: Claim, verdict: Verdict, material: Material) -> ClaimView:
    """A claim, with the networks that decide before the others.

    Args:
        claim: the claim.
        verdict: its verdict.
        material: the results.
    """
    measured = material.results.get(claim.experiment.replace("-", "_"), {})
    first = next((measured[j.network] for j in verdict.decided_by if j.network in measured), None)
    ours = cell(first, claim.number) if first and claim.number in first.numbers else Cell("")
    views = [_judgement(judgement, True) for judgement in verdict.decided_by if judgement.tests]
    views += [_judgement(judgement, False) for judgement in verdict.others]
    return ClaimView(claim, verdict, thesis_value(claim), ours, tuple(views))


def _judgement(judgement: Judgement, decides: bool) -> JudgementView:
    return JudgementView(
        judgement, decides, tuple(_outcome(outcome) for outcome in judgement.tests)
    )


def _outcome(outcome: Outcome) -> OutcomeView:
    value, interval = interval_text(outcome.number, outcome.value, outcome.low, outcome.high)
    seen = counts_text([(outcome.n, outcome.seeds)]) if outcome.verdict != NOT_TESTED else ""
    bounds = bounds_text(outcome.number, outcome.bounds)
    return OutcomeView(outcome, value, interval, bounds, seen, _mark(outcome))


def _mark(outcome: Outcome) -> dict[str, object] | None:
    """The places of interval, value and thresholds, in percent of a line that holds them all."""
    if outcome.value is None or outcome.low is None or outcome.high is None:
        return None
    thresholds = sorted(set(outcome.bounds.values()))
    points = [outcome.low, outcome.high, outcome.value, *thresholds]
    if not all(math.isfinite(point) for point in points):
        return None
    first, last = min(points), max(points)
    scale = 84 / (last - first) if last > first else 0.0
    low, high, value, *marks = (
        round(8 + scale * (point - first), 2) if scale else 50.0 for point in points
    )
    return {
        "left": low,
        "width": max(round(high - low, 2), 0.0),
        "value": value,
        "thresholds": marks,
    }
