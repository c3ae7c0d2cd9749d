"""Counts of claims, and of the distinct tests that they rest on."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.report.grounds import GROUNDS
from pipeline.report.words import ARITHMETIC, NEGATIVE, NOT_TESTED, POSITIVE, VERDICTS

__all__ = ["Counted", "Tally", "by_test", "counts", "tally"]


class Counted(Protocol):
    """What is counted: a verdict on a claim, by one suite or over all of them."""

    @property
    def id(self) -> str:
        """Id of the claim."""

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""

    @property
    def ground(self) -> str:
        """One of GROUNDS, or empty."""

    @property
    def test(self) -> str:
        """What claims that share one test have in common."""


@dataclass(frozen=True)
class Tally:
    """How many claims and distinct tests have each verdict.

    Attributes:
        claims: verdict -> number of claims, in the order of VERDICTS.
        tests: the same for distinct tests; arithmetic ones and those not tested are no tests.
        asked: number of distinct tests that were measured.
        decided: number of those that hold or fail.
        grounds: ground -> verdict -> number of distinct tests.
    """

    claims: Mapping[str, int]
    tests: Mapping[str, int]
    asked: int
    decided: int
    grounds: Mapping[str, Mapping[str, int]]


def by_test(verdicts: Iterable[Counted]) -> list[Counted]:
    """One verdict a distinct test, that on the nearest ground; tests that ask nothing are left out.

    Claims that share one test have one outcome, in the words of the ground of each.
    """
    found: dict[str, Counted] = {}
    for verdict in verdicts:
        if verdict.verdict in (ARITHMETIC, NOT_TESTED):
            continue
        known = found.setdefault(verdict.test, verdict)
        if GROUNDS.index(verdict.ground) < GROUNDS.index(known.ground):
            found[verdict.test] = verdict
    return list(found.values())


def tally(verdicts: Sequence[Counted]) -> Tally:
    """Count verdicts."""
    claims, tests = Counter(v.verdict for v in verdicts), by_test(verdicts)
    words = Counter(test.verdict for test in tests)
    grounds = {
        ground: dict(Counter(test.verdict for test in tests if test.ground == ground))
        for ground in GROUNDS
    }
    return Tally(
        claims={name: claims[name] for name in VERDICTS},
        tests={name: words[name] for name in VERDICTS if name not in (ARITHMETIC, NOT_TESTED)},
        asked=len(tests),
        decided=sum(words[name] for name in (*POSITIVE, *NEGATIVE)),
        grounds=grounds,
    )


def counts(verdicts: Sequence[Any]) -> dict[str, Any]:
    """The counts that stand in the file of verdicts; its writer says what they are."""
    stages = sorted({verdict.stage for verdict in verdicts})
    chapters = sorted({verdict.id[2] for verdict in verdicts})
    whole = tally(verdicts)

    def words(chosen: Iterable[Any]) -> dict[str, int]:
        return dict(Counter(verdict.verdict for verdict in chosen))

    return {
        "verdict": words(verdicts),
        "kind": {k: words(v for v in verdicts if v.kind == k) for k in ("value", "relation")},
        "stage": {stage: words(v for v in verdicts if v.stage == stage) for stage in stages},
        "ground": {g: words(v for v in verdicts if v.ground == g) for g in GROUNDS},
        "tests": {"asked": whole.asked, "decided": whole.decided, "verdict": whole.tests},
        "chapter": {
            chapter: {
                "asked": part.asked,
                "decided": part.decided,
                "claims": {name: n for name, n in part.claims.items() if n},
                "tests": {name: n for name, n in part.tests.items() if n},
            }
            for chapter in chapters
            for part in [tally([v for v in verdicts if v.id[2] == chapter])]
        },
    }
