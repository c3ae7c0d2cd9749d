"""The first page of the report: what holds in each chapter, what does not, and why."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.claims import ALL, Claim
from pipeline.report import files
from pipeline.report.beside import Material
from pipeline.report.counting import Tally, by_test, tally
from pipeline.report.results import Measured
from pipeline.report.text import CHAPTERS, estimate_text
from pipeline.report.verdicts import Verdict
from pipeline.report.words import (
    ARITHMETIC,
    CARRIES,
    CONTRADICTED,
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
DATA = {
    "mnist5k": "5,000 MNIST digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "imagenet": "ImageNet",
}
"""Our names of models and data sets -> what readers call them."""


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
    """A distinct test that fails, with all claims that share it."""

    verdict: Verdict
    claims: tuple[Claim, ...]
    networks: str


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
    """Such as "9 hold (7 reproduced, 2 carry over)"."""
    near, far = (counted.tests[name] for name in names)
    positive = names[0] == REPRODUCED
    all_ = near + far
    verb = "hold" if positive else "do not hold"
    verb = {"hold": "holds", "do not hold": "does not hold"}[verb] if all_ == 1 else verb
    parts = [(near, names[0]), (far, "carry over" if positive else "do not carry over")]
    shown = ", ".join(f"{number} {name}" for number, name in parts if number)
    return f"{all_} {verb} ({shown})" if shown else f"none {'holds' if positive else 'fails'}"


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
            verdict = next(v for _, v in shared if v.id == test.id)
            networks = [j.network for j in verdict.decided_by if j.verdict in NEGATIVE]
            named = ", ".join(words.get(network, network) for network in networks)
            claims = tuple(claim for claim, _ in shared)
            found.setdefault(claims[0].reason, []).append(Failure(verdict, claims, named))
    return found


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
