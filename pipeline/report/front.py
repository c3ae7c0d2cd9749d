"""The first page of the report: what holds in each chapter, what does not, and why."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.claims import ALL, Claim
from pipeline.report import files
from pipeline.report.beside import Material
from pipeline.report.counting import Tally, by_test, tally
from pipeline.report.results import Measured
from pipeline.report.text import CHAPTERS, DATA, bounds_text, estimate_text, interval_text, label
from pipeline.report.verdicts import Judgement, Verdict
from pipeline.report.words import (
    ARITHMETIC,
    CARRIES,
    CONTRADICTED,
    FAILS,
    NEGATIVE,
    NOT_CARRIES,
    NOT_TESTED,
    REPRODUCED,
    UNDECIDED,
)

__all__ = ["ChapterFront", "Failure", "chapter_fronts", "failures", "network_words"]

FIGURES = {
    3: ("attack_l2", "figure_3_5"),
    4: ("uap_vs_others", "figure_4_9"),
    5: ("noise_regimes_example", "figure_5_4"),
    6: ("sc_fooling", "figure_6_9b"),
    7: ("curvature_sign", "curvatures"),
    8: ("cure_eps_curve", "figure_8_6"),
}
"""Chapter -> the experiment and the figure that stand for it; another one of its where missing."""

PLACEHOLDER = re.compile(r"\{([^}]+)\}")
"""The name of a number inside a headline."""

MODELS = {
    "lenet": "LeNet",
    "lenet5": "LeNet-5",
    "fc500_150_10": "FC500-150-10",
    "nin": "NIN",
    "resnet18": "ResNet-18",
    "bn_cnn": "batch-norm CNN",
}
"""Our names of models -> what readers call them."""


@dataclass(frozen=True)
class ChapterFront:
    """A chapter on the first page.

    Attributes:
        number: its number.
        title: its title.
        sentences: how much of it holds, and what its key numbers are.
        figure: the one that stands for it; None without any.
        tally: counts of its claims and tests.
    """

    number: int
    title: str
    sentences: tuple[str, ...]
    figure: files.Figure | None
    tally: Tally


@dataclass(frozen=True)
class Failure:
    """A distinct test that fails.

    Attributes:
        verdict: on the claim whose ground is the nearest.
        claims: all claims that share the test, this one first.
        networks: where it fails, in words.
        measured: what was measured against which bound, in words.
    """

    verdict: Verdict
    claims: tuple[Claim, ...]
    networks: str
    measured: str


def chapter_fronts(material: Material, words: Mapping[str, str]) -> list[ChapterFront]:
    """The chapters that the claims are about, in order.

    Args:
        material: claims with their verdicts, and results.
        words: network -> what readers call it.
    """
    fronts = []
    for number, title in CHAPTERS.items():
        judged = [pair for pair in material.judged if pair[0].chapter == number]
        counted = tally([verdict for _, verdict in judged])
        sentences = (_share(counted), *_headlines(judged, material, words))
        figure = _figure(number, judged, material)
        fronts.append(ChapterFront(number, title, sentences, figure, counted))
    return fronts


def _share(counted: Tally) -> str:
    """How many tests of a chapter hold."""
    if not counted.asked:
        return "Nothing of this chapter is tested here."
    claims = sum(n for name, n in counted.claims.items() if name not in (ARITHMETIC, NOT_TESTED))
    holds = _counted(counted, (REPRODUCED, CARRIES))
    fails = _counted(counted, (CONTRADICTED, NOT_CARRIES))
    return (
        f"Of {_many(counted.asked, 'distinct test')}, which stand for {_many(claims, 'claim')}, "
        f"{holds}, {fails}, and {counted.tests[UNDECIDED]} "
        f"{'is' if counted.tests[UNDECIDED] == 1 else 'are'} undecided."
    )


def _counted(counted: Tally, names: tuple[str, str]) -> str:
    """Such as "9 hold (7 reproduced, 2 carry over)", or "2 carry over"."""
    near, far = (counted.tests[name] for name in names)
    positive = names[0] == REPRODUCED
    if not near + far:
        return f"none {'holds' if positive else 'fails'}"
    here = f"{near} {'is' if near == 1 else 'are'} {names[0]}"
    there = {
        True: f"{far} {'carries' if far == 1 else 'carry'} over",
        False: f"{far} {'does' if far == 1 else 'do'} not carry over",
    }[positive]
    if near and far:
        return f"{near + far} {'hold' if positive else 'do not'} ({here}, {there})"
    return here if near else there


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _headlines(
    judged: Sequence[tuple[Claim, Verdict]], material: Material, words: Mapping[str, str]
) -> list[str]:
    """One sentence of the chapter's key numbers, with the verdict on each; none without any."""
    clauses: dict[str, list[str]] = {}
    for claim, verdict in judged:
        network = next((j.network for j in verdict.decided_by if j.tests), "")
        measured = material.results.get(claim.experiment.replace("-", "_"), {}).get(network)
        if claim.headline and measured and (said := _filled(claim.headline, measured)):
            clauses.setdefault(words.get(network, network), []).append(
                f"{said} ({verdict.verdict})"
            )
    return [f"For {network}, {', and '.join(said)}." for network, said in clauses.items()]


def _filled(headline: str, measured: Measured) -> str:
    """A headline with its numbers; empty where one is missing."""
    if not all(name in measured.numbers for name in PLACEHOLDER.findall(headline)):
        return ""
    return PLACEHOLDER.sub(
        lambda found: " ".join(estimate_text(found[1], measured.numbers[found[1]])), headline
    )


def _figure(
    number: int, judged: Sequence[tuple[Claim, Verdict]], material: Material
) -> files.Figure | None:
    """The figure that stands for a chapter, or else the first one of its experiments."""
    own = [claim.experiment.replace("-", "_") for claim, _ in judged]
    chosen, name = FIGURES[number]
    names = [experiment.name for experiment in material.experiments]
    for experiment in dict.fromkeys((chosen, *own)):
        found = material.results.get(experiment, {})
        for network in (*material.networks, ALL):
            shown = files.figures(found[network], experiment, names) if network in found else []
            whole = [figure for figure in shown if figure.uri]
            wanted = [figure for figure in whole if figure.title == files.caption(name)]
            if wanted or (whole and experiment != chosen):
                return (wanted or whole)[0]
    return None


def failures(
    judged: Iterable[tuple[Claim, Verdict]], words: Mapping[str, str]
) -> dict[str, list[Failure]]:
    """Reason (its name, "" for none) -> the distinct tests that fail."""
    pairs = list(judged)
    found: dict[str, list[Failure]] = {}
    for test in by_test(verdict for _, verdict in pairs):
        if test.verdict in NEGATIVE:
            shared = [(c, v) for c, v in pairs if v.test == test.test and v.verdict in NEGATIVE]
            shared.sort(key=lambda pair: pair[0].id != test.id)
            claims, verdict = tuple(claim for claim, _ in shared), shared[0][1]
            fails = [j for j in verdict.decided_by if j.verdict in NEGATIVE]
            named = ", ".join(
                words.get(judgement.network, judgement.network) for judgement in fails
            )
            failure = Failure(verdict, claims, named, _measured(fails[0]))
            found.setdefault(claims[0].reason, []).append(failure)
    return found


def _measured(judgement: Judgement) -> str:
    """The tests that fail on a network: "ρ̂ DeepFool is 3.1 [2.9, 3.3], and should be < 3"."""
    said = []
    for test in judgement.tests:
        if test.decides and test.verdict == FAILS:
            value = " ".join(interval_text(test.number, test.value, test.low, test.high))
            bounds = bounds_text(test.number, test.bounds)
            said.append(f"{label(test.number)} is {value}, and should be {bounds}")
    return "; ".join(said)


def network_words(networks: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Network -> what readers call it.

    Args:
        networks: name -> its model's and its data set's name here.
    """
    words = {
        name: f"{MODELS.get(model, model)} on {DATA.get(dataset, dataset)}"
        for name, (model, dataset) in networks.items()
        if model
    }
    return words | {ALL: "all networks together"}
