"""The verdict of the measured numbers on each claim of the thesis."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.claims import ALL, THESIS_DATA, Claim, Claims, Condition
from pipeline.ledger import write_own
from pipeline.report.results import Measured, Results
from pipeline.statistics import Estimate

__all__ = ["VERDICTS", "Judgement", "Outcome", "Verdict", "decide", "judge", "write_verdicts"]

VERDICTS = ("reproduced", "contradicted", "inconclusive", "not tested here")
REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = VERDICTS


@dataclass(frozen=True)
class Outcome:
    """One test on one network; value and interval are None where the number is missing."""

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
    """A claim on one network."""

    network: str
    dataset: str
    kind: str
    verdict: str
    why: str
    tests: tuple[Outcome, ...] = ()


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
        decided_by: the claim on the networks that decide.
        others: the claim on the others.
    """

    id: str
    stage: str
    verdict: str
    kind: str
    why: str
    named: bool = False
    decided_by: tuple[Judgement, ...] = ()
    others: tuple[Judgement, ...] = ()


def decide(estimate: Estimate, bounds: Mapping[str, float]) -> str:
    """The verdict of one number.

    It is reproduced if the whole 95% interval keeps every bound, contradicted if the whole interval
    breaks one, and inconclusive otherwise.

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
    return REPRODUCED if kept else CONTRADICTED if broken else INCONCLUSIVE


def _all(verdicts: Sequence[str]) -> str:
    """The verdict if all must hold: a contradiction decides, else a missing test leaves it open."""
    return next(v for v in (CONTRADICTED, NOT_TESTED, INCONCLUSIVE, REPRODUCED) if v in verdicts)


def _any(verdicts: Sequence[str]) -> str:
    """The verdict if one must hold: a reproduction decides, else a missing test leaves it open."""
    return next(v for v in (REPRODUCED, NOT_TESTED, INCONCLUSIVE, CONTRADICTED) if v in verdicts)


def judge(
    claims: Claims, results: Results, *, networks: Sequence[str], counterparts: Mapping[str, str]
) -> list[Verdict]:
    """The verdict on every claim, in the order of the claims file.

    Args:
        claims: all claims.
        results: results, from :func:`pipeline.report.results.read_results`.
        networks: networks of the suite, in order.
        counterparts: network of the thesis ("NIN", or "CIFAR-10 LeNet" where the name alone is
            ambiguous) -> the suite's network that answers for it; "default" answers for the rest.
    """
    across = frozenset(experiment.id for experiment in claims.experiments if experiment.across)
    court = _Court(claims.value_tolerance, results, networks, counterparts, across)
    return [court.verdict(claim) for claim in claims.on(counterparts).claims]


@dataclass(frozen=True)
class _Court:
    """All that claims are judged by."""

    tolerance: float
    results: Results
    networks: Sequence[str]
    counterparts: Mapping[str, str]
    across: frozenset[str]

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
        judged = tuple(self.on(claim, network, named.get(network, False)) for network in deciding)
        verdict = (_any if claim.over == "any" else _all)(
            [judgement.verdict for judgement in judged]
        )
        kinds = {judgement.kind for judgement in judged if judgement.kind}
        kind = "" if verdict == NOT_TESTED else "value" if kinds == {"value"} else "relation"
        reasons = [
            judgement.why for judgement in judged if judgement.verdict == NOT_TESTED == verdict
        ]
        shown = [n for n in networks if n not in deciding or claim.only_on]
        others = tuple(
            judgement for network in shown if (judgement := self.tested(claim, network)).tests
        )
        why = "; ".join(dict.fromkeys(reasons))
        return Verdict(
            claim.id, claim.stage, verdict, kind, why, any(named.values()), judged, others
        )

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
            return _judgement(claim, measured, "value", (_near(claim, self.tolerance),))
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
        return _judgement(claim, measured, "relation", claim.tests)

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
    claim: Claim, measured: Measured, kind: str, tests: Sequence[Condition]
) -> Judgement:
    outcomes = tuple(_outcome(test, measured) for test in tests)
    verdict = _all([o.verdict for o in outcomes if o.decides and not o.premise])
    premises = [o.verdict for o in outcomes if o.premise]
    if verdict in (REPRODUCED, CONTRADICTED) and premises and (met := _all(premises)) != REPRODUCED:
        verdict = NOT_TESTED if met == NOT_TESTED else INCONCLUSIVE
    missing = [f"'{o.number}'" for o in outcomes if o.decides and o.verdict == NOT_TESTED]
    network = measured.network
    why = f"{_file(claim)} gives no {' and no '.join(missing)} for {network}" if missing else ""
    return Judgement(
        network, measured.dataset, kind if verdict != NOT_TESTED else "", verdict, why, outcomes
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
    """Write verdicts and counts as JSON with sorted keys: equal verdicts give equal bytes."""
    stages = sorted({verdict.stage for verdict in verdicts})
    content = {
        "suite": suite,
        "counts": {
            "verdict": Counter(v.verdict for v in verdicts),
            "kind": {
                k: Counter(v.verdict for v in verdicts if v.kind == k)
                for k in ("value", "relation")
            },
            "stage": {
                stage: Counter(v.verdict for v in verdicts if v.stage == stage) for stage in stages
            },
        },
        "value_tolerance": claims.value_tolerance,
        "changed_thresholds": list(claims.changed_thresholds),
        "claims": [asdict(verdict) for verdict in verdicts],
    }
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_own(path, text, lambda found: all(f'"{key}": ' in found for key in content))
