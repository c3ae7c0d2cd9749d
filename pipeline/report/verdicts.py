"""The verdict of the measured numbers on each claim of the thesis."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.claims import ALL, THESIS_DATA, Claim, Claims, Condition
from pipeline.ledger import write_own
from pipeline.report.counting import counts
from pipeline.report.grounds import GROUNDS, Ground, Grounds, check_kin
from pipeline.report.results import Measured, Results
from pipeline.report.words import (
    ARITHMETIC,
    FAILS,
    HOLDS,
    NOT_TESTED,
    UNDECIDED,
    outcome_of,
    word,
)
from pipeline.statistics import Estimate

__all__ = ["Judgement", "Outcome", "Verdict", "decide", "judge", "write_verdicts"]


@dataclass(frozen=True)
class Outcome:
    """One test on one network; value and interval are None where the number is missing.

    Its ``verdict`` is one of OUTCOMES, as a test alone stands on no ground.
    """

    number: str
    bounds: Mapping[str, float]
    verdict: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    decides: bool = True
    premise: bool = False


@dataclass(frozen=True)
class Judgement:
    """A claim on one network; its ``verdict`` is in the words of its ground."""

    network: str
    dataset: str
    kind: str
    verdict: str
    why: str
    tests: tuple[Outcome, ...] = ()
    ground: str = ""
    ground_why: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim.

    Attributes:
        id: id of the claim.
        stage: its stage.
        verdict: one of VERDICTS.
        kind: "value", "relation", or "" where nothing was tested.
        why: reason where the claim is not tested.
        named: whether the suite names a network for the claim's own, instead of leaving it to the
            default one.
        decided_by: the claim on the networks that decide: of those that answer for the claim, the
            ones on the nearest ground that was tested.
        others: the claim on the others.
        ground: one of GROUNDS; empty where nothing was tested.
        test: id of the first claim with the same test: the same numbers and bounds on the same
            networks; empty for a claim without any.
    """

    id: str
    stage: str
    verdict: str
    kind: str
    why: str
    named: bool = False
    decided_by: tuple[Judgement, ...] = ()
    others: tuple[Judgement, ...] = ()
    ground: str = ""
    test: str = ""


def decide(estimate: Estimate, bounds: Mapping[str, float]) -> str:
    """The outcome of one number's test, one of OUTCOMES.

    It holds if the whole 95% interval keeps every bound, fails if the whole interval breaks one,
    and is undecided otherwise.

    Args:
        estimate: the number; with a NaN in its value or interval it is not tested.
        bounds: thresholds; at_least and at_most include theirs, above and below do not.
    """
    low, high = estimate.low, estimate.high
    if math.isnan(estimate.value + low + high):
        return NOT_TESTED
    return _all([_side(low, high, name, threshold) for name, threshold in bounds.items()])


def _side(low: float, high: float, bound: str, threshold: float) -> str:
    kept, broken = {
        "at_least": (low >= threshold, high < threshold),
        "at_most": (high <= threshold, low > threshold),
        "above": (low > threshold, high <= threshold),
        "below": (high < threshold, low >= threshold),
    }[bound]
    return HOLDS if kept else FAILS if broken else UNDECIDED


def _all(outcomes: Sequence[str]) -> str:
    """The outcome if all must hold: a failure decides, else a missing test leaves it open."""
    return next(v for v in (FAILS, NOT_TESTED, UNDECIDED, HOLDS) if v in outcomes)


def _any(outcomes: Sequence[str]) -> str:
    """The outcome if one must hold: one that does decides, else a missing test leaves it open."""
    return next(v for v in (HOLDS, NOT_TESTED, UNDECIDED, FAILS) if v in outcomes)


def judge(
    claims: Claims,
    results: Results,
    *,
    networks: Sequence[str],
    counterparts: Mapping[str, str],
    kin: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """The verdict on every claim, in the order of the claims file.

    Args:
        claims: all claims.
        results: results, from :func:`pipeline.report.results.read_results`.
        networks: networks of the suite, in order.
        counterparts: network of the thesis ("NIN", or "CIFAR-10 LeNet" where the name alone is
            ambiguous) -> the suite's network that answers for it; "default" answers for the rest.
        kin: data set of the thesis -> why the suite's pictures and networks are of its kind.

    Raises:
        InputError: ``kin`` names no data set of the thesis, or gives no reason.
    """
    check_kin(kin or {})
    across = frozenset(experiment.id for experiment in claims.experiments if experiment.across)
    grounds = Grounds(claims, counterparts, kin or {})
    court = _Court(claims.value_tolerance, results, networks, counterparts, across, grounds)
    own = claims.on(counterparts).claims
    verdicts = [court.verdict(claim) for claim in own]
    first: dict[object, str] = {}
    return [
        replace(verdict, test=first.setdefault(_same(claim, verdict), claim.id))
        if claim.tests or verdict.kind
        else verdict
        for claim, verdict in zip(own, verdicts, strict=True)
    ]


def _same(claim: Claim, verdict: Verdict) -> object:
    """What claims that share one test have in common."""
    tested = next((j.tests for j in verdict.decided_by if j.tests), None)
    conditions: Sequence[Outcome | Condition] = tested or claim.tests
    bounds = [(t.number, sorted(t.bounds.items()), t.premise) for t in conditions if t.decides]
    networks = [judgement.network for judgement in verdict.decided_by if judgement.tests]
    over = claim.over == "any"
    return repr(
        (claim.experiment, sorted(bounds), networks, over, claim.only_on if not tested else "")
    )


@dataclass(frozen=True)
class _Court:
    """All that claims are judged by."""

    tolerance: float
    results: Results
    networks: Sequence[str]
    counterparts: Mapping[str, str]
    across: frozenset[str]
    grounds: Grounds

    def verdict(self, claim: Claim) -> Verdict:
        if not (claim.tests or claim.number or claim.lacks):
            return Verdict(
                claim.id, claim.stage, NOT_TESTED, "", f"the stage {claim.stage} is not built yet"
            )
        across = claim.experiment in self.across
        # Across networks there is one set of results, and a claim's own number only where the suite
        # names its networks.
        named = {ALL: bool(claim.number)} if across else self.answering(claim)
        networks = [ALL] if across else self.networks
        deciding = [network for network in networks if claim.over or network in named]
        if not deciding:
            why = (
                claim.lacks and f"lacks {claim.lacks}"
            ) or "no network of the suite answers for it"
            return Verdict(claim.id, claim.stage, NOT_TESTED, "", why)
        answers = [self.on(claim, network, named.get(network, False)) for network in deciding]
        judged = _nearest(answers, claim.over == "any")
        shown = [n for n in networks if n not in deciding or claim.only_on]
        others = [j for j in answers if j not in judged and j.tests]
        others += [j for network in shown if (j := self.tested(claim, network)).tests]
        return _verdict(claim, judged, others, any(named.values()))

    def answering(self, claim: Claim) -> dict[str, bool]:
        """Network -> True if the suite names it for the claim, False if it is the default."""
        found: dict[str, bool] = {}
        for model in claim.models or ("",):
            network = claim.counterpart(model, self.counterparts)
            if network is not None:
                found[network] = True
            elif "default" in self.counterparts:
                found.setdefault(self.counterparts["default"], False)
        return found

    def on(self, claim: Claim, network: str, named: bool) -> Judgement:
        """The claim on a network that decides.

        Args:
            claim: the claim.
            network: name of the network.
            named: whether the suite names it for the claim's own network.
        """
        measured = self.measured(claim, network)
        data = THESIS_DATA.get(measured.dataset, "") if measured else ""
        comparable = claim.number and claim.value is not None and "hardware" not in claim.setting
        if measured and named and comparable and data and data == claim.data:
            near = (_near(claim, self.tolerance),)
            return _judgement(claim, measured, "value", near, self.ground(claim, measured))
        if (claim.only_on and data != claim.only_on) or not claim.tests:
            name = measured.dataset if measured else ""
            return Judgement(network, name, "", NOT_TESTED, f"lacks {claim.lacks}")
        return self.tested(claim, network)

    def tested(self, claim: Claim, network: str) -> Judgement:
        """The outcome of the claim's tests on a network, whatever its data."""
        measured = self.measured(claim, network)
        if measured is None:
            return Judgement(network, "", "", NOT_TESTED, self.absent(claim, network))
        if not claim.tests:
            return Judgement(network, measured.dataset, "", NOT_TESTED, "")
        ground = self.ground(claim, measured)
        return _judgement(claim, measured, "relation", claim.tests, ground)

    def ground(self, claim: Claim, measured: Measured) -> Ground:
        return self.grounds.of(claim, measured.network, measured.dataset)

    def measured(self, claim: Claim, network: str) -> Measured | None:
        return self.results.get(_file(claim), {}).get(network)

    def absent(self, claim: Claim, network: str) -> str:
        """Why there are no results: the stage has not run, or this experiment has not."""
        stage = f"{claim.stage}_transfer" if network == ALL else claim.stage
        there = [entry[network] for entry in self.results.values() if network in entry]
        if any(measured.stage == stage for measured in there):
            return f"{_file(claim)} has not run on {network}"
        return f"no results of stage {stage} for {network}"


def _file(claim: Claim) -> str:
    return claim.experiment.replace("-", "_")


def _near(claim: Claim, tolerance: float) -> Condition:
    """The test that the claim's number lies within the tolerance of the thesis' value."""
    value = claim.value or 0.0
    margin = tolerance * abs(value)
    return Condition(claim.number, {"at_least": value - margin, "at_most": value + margin})


def _judgement(
    claim: Claim, measured: Measured, kind: str, tests: Sequence[Condition], ground: Ground
) -> Judgement:
    outcomes = tuple(_outcome(test, measured) for test in tests)
    outcome = _all([o.verdict for o in outcomes if o.decides and not o.premise])
    premises = [o.verdict for o in outcomes if o.premise]
    if outcome in (HOLDS, FAILS) and premises and (met := _all(premises)) != HOLDS:
        outcome = NOT_TESTED if met == NOT_TESTED else UNDECIDED
    missing = [f"'{o.number}'" for o in outcomes if o.decides and o.verdict == NOT_TESTED]
    network = measured.network
    why = f"{_file(claim)} gives no {' and no '.join(missing)} for {network}" if missing else ""
    return Judgement(
        network,
        measured.dataset,
        kind if outcome != NOT_TESTED else "",
        word(outcome, ground.name),
        why,
        outcomes,
        ground.name,
        ground.why,
    )


def _nearest(answers: Sequence[Judgement], some: bool) -> list[Judgement]:
    """The networks that decide: those on the nearest ground on which the claim was tested.

    Args:
        answers: the claim on the networks that answer for it.
        some: whether it is enough that it holds on one of them, whatever its ground.
    """
    if some:
        return list(answers)
    for ground in GROUNDS:
        near = [judgement for judgement in answers if judgement.ground == ground]
        if near and any(judgement.verdict != NOT_TESTED for judgement in near):
            return [judgement for judgement in answers if judgement.ground in (ground, "")]
    return list(answers)


def _verdict(
    claim: Claim, judged: Sequence[Judgement], others: Sequence[Judgement], named: bool
) -> Verdict:
    some = claim.over == "any"
    outcomes = [outcome_of(judgement.verdict) for judgement in judged]
    outcome = (_any if some else _all)(outcomes)
    tested = [judgement for judgement in judged if judgement.verdict != NOT_TESTED]
    holding = [judgement for judgement in tested if outcome_of(judgement.verdict) == HOLDS]
    on = {judgement.ground for judgement in (holding if some and holding else tested)}
    ground = next((name for name in GROUNDS if name in on), "") if outcome != NOT_TESTED else ""
    kinds = {judgement.kind for judgement in judged if judgement.kind}
    kind = "" if outcome == NOT_TESTED else "value" if kinds == {"value"} else "relation"
    reasons = [j.why for j in judged if j.verdict == NOT_TESTED == outcome]
    decided = ARITHMETIC if claim.arithmetic and kind == "relation" else word(outcome, ground)
    return Verdict(
        claim.id,
        claim.stage,
        decided,
        kind,
        "; ".join(dict.fromkeys(reasons)),
        named,
        tuple(judged),
        tuple(others),
        ground,
    )


def _outcome(test: Condition, measured: Measured) -> Outcome:
    estimate = measured.numbers.get(test.number)
    if estimate is None or (verdict := decide(estimate, test.bounds)) == NOT_TESTED:
        return Outcome(
            test.number, test.bounds, NOT_TESTED, decides=test.decides, premise=test.premise
        )
    return Outcome(
        test.number,
        test.bounds,
        verdict,
        estimate.value,
        estimate.low,
        estimate.high,
        estimate.n,
        estimate.seeds,
        test.decides,
        test.premise,
    )


def write_verdicts(path: Path, suite: str, claims: Claims, verdicts: Sequence[Verdict]) -> None:
    """Write verdicts and counts as JSON with sorted keys: equal verdicts give equal bytes.

    ``counts`` holds the numbers of claims by verdict, kind, stage and ground, and, under ``tests``
    and ``chapter``, those of distinct tests: ``asked`` of them, of which ``decided`` hold or fail.
    """
    content = {
        "suite": suite,
        "counts": counts(verdicts),
        "value_tolerance": claims.value_tolerance,
        "changed_thresholds": list(claims.changed_thresholds),
        "claims": [asdict(verdict) for verdict in verdicts],
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_own(path, text, lambda found: all(f'"{key}": ' in found for key in content))
