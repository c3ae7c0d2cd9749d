"""The words of verdicts, which say on what ground they stand."""

__all__ = [
    "ARITHMETIC",
    "CARRIES",
    "CONTRADICTED",
    "FAILS",
    "HOLDS",
    "NEGATIVE",
    "NOT_CARRIES",
    "NOT_TESTED",
    "OUTCOMES",
    "POSITIVE",
    "REPRODUCED",
    "UNDECIDED",
    "VERDICTS",
    "outcome_of",
    "word",
]

OUTCOMES = ("holds", "fails", "undecided", "not tested here")
"""The outcomes of a test, whatever its ground."""

HOLDS, FAILS, UNDECIDED, NOT_TESTED = OUTCOMES

VERDICTS = (
    "reproduced",
    "carries over",
    "undecided",
    "does not carry over",
    "contradicted",
    "arithmetic",
    "not tested here",
)
"""The verdicts on a claim, in the order in which they are shown."""

REPRODUCED, CARRIES, _, NOT_CARRIES, CONTRADICTED, ARITHMETIC, _ = VERDICTS
POSITIVE, NEGATIVE = (REPRODUCED, CARRIES), (NOT_CARRIES, CONTRADICTED)

NEAR = ("theorem", "own")
"""Grounds on which a claim itself is tested; on the others, whether it carries over."""


def word(outcome: str, ground: str) -> str:
    """The verdict for an outcome on a ground.

    Example:
        >>> from pipeline.report.words import word
        >>> word("holds", "own"), word("holds", "kin"), word("fails", "far")
        ('reproduced', 'carries over', 'does not carry over')
    """
    near = ground in NEAR
    if outcome == HOLDS:
        return REPRODUCED if near else CARRIES
    if outcome == FAILS:
        return CONTRADICTED if near else NOT_CARRIES
    return outcome


def outcome_of(verdict: str) -> str:
    """The outcome that a verdict stands for.

    Example:
        >>> from pipeline.report.words import outcome_of
        >>> outcome_of("carries over"), outcome_of("undecided")
        ('holds', 'undecided')
    """
    return HOLDS if verdict in POSITIVE else FAILS if verdict in NEGATIVE else verdict
