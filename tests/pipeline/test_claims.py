"""The claims file is whole, its thresholds are the frozen ones, verdicts follow from intervals."""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from pipeline.claims import CLAIMS_FILE, Claims, Condition, load_claims
from pipeline.report.results import Measured
from pipeline.report.verdicts import decide, judge, write_verdicts
from pipeline.report.words import VERDICTS
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError

CLAIMS = load_claims()
BY_ID = {claim.id: claim for claim in CLAIMS.claims}
TESTED_STAGES = tuple(sorted({claim.stage for claim in CLAIMS.claims}))
FROZEN = "f9ca03a0b524a475dd4e4d3b27ab1196bc92a71f5ce1babb531b299a8533dbb2"
"""SHA-256 over all expressions as they were before anything was measured."""
NOT_COMPARISONS = {
    "ch7-sec75-asymmetry-holds-imagenet": [("below", 0.0)],  # "opposite signs": of the product
    "ch3-fig312-watermark": [("above", 0.5)],  # "the label differs", of the median image
    "ch3-eq312-lp-closed-form": [("at_least", 1.0)],  # "label flips", of every draw
    "ch8-fig84-bounds-decrease": [
        ("below", 0.0),
        ("below", 0.0),
    ],  # "strictly decreasing": of every step
    "ch8-fig85-1d": [("below", 0.0)],
    "ch8-remark2-gradient": [("below", 0.0), ("below", 0.0)],
    "ch8-fig86-resnet18-decreases-with-eps": [("at_most", 0.0)],  # "nonincreasing": of every step
    "ch8-fig86-wresnet28x10-decreases-with-eps": [("at_most", 0.0)],
    "ch8-fig89-profile-similar": [("at_least", 0.5), ("at_most", 2.0)],  # "in [0.5, 2]"
    "ch8-footnote3-relu-logit-hessian-zero": [("above", 0.0)],  # "is > 0", after "while"
}
"""Bounds that stand for a part of the expression that is no comparison of numbers."""
BAND = [("at_least", 0.95), ("at_most", 1.15)]  # of beta
TIMES = [("above", 0.0), ("at_least", 0.0)]  # positive, and a multiple
READ = {
    "ch5-obs1-distance": [("at_least", 0.95)],
    "ch5-theorem1-bounds": [("at_least", 0.956)] * 6,  # delta = 0.002, L = 10; for each m
    "ch5-fig52-zeta-range": [("at_least", 0.8), ("at_most", 1.3)],
    "ch5-sec54-random-sqrt-d": [("at_least", 0.956)],
    "ch5-sec54-large-m-sqrt-d-over-m": [("at_least", 0.8), ("at_most", 1.3)]
    * 2,  # for each large m
    "ch5-sec54-one-percent-subspace-ten-times": [("at_least", 8.0), ("at_most", 13.0)],
    "ch5-theorem2-bounds": [("at_least", 0.8)] * 12,  # delta = 0.05; for each m, side and curvature
    "ch5-corollary1-bounds": [("at_least", 0.904)] * 3,  # delta = 0.002, L = 10; for each m
    "ch5-lemma2-projection": [("at_least", 0.9)] * 6,  # delta = 0.05; for each m
    "ch5-lemma4-circle": [("at_least", -1e-9)] * 2,  # "holds", to rounding
    "ch5-lemma7-sqrt": [("at_least", -1e-12)],
    "ch5-lemma8-sqrt": [("at_least", -1e-12)],
    "ch5-table51-beta-mildly-above-one": [
        ("at_least", 0.995),
        ("at_most", 1.105),
    ],  # "round(..., 2)"
    "ch5-fig54-sqrt-d-400": [("at_least", 0.5), ("at_most", 2.0)],
    "ch5-fig54-m10-less-visible": [
        ("above", 0.0),
        ("above", 0.0),
        ("at_least", 2.0),
        ("at_most", 5.0),
    ],
    "ch5-fig55-boundary-low-curvature": [("at_most", 0.1)],
    "ch5-fig55-corollary-condition": [("at_most", 0.0)],  # less the limit, which depends on zeta2
    "ch5-sec551-curvature-special-cases": [("at_most", 0.01)],
    "ch6-theorem3-sqrt-m-scaling": [("at_least", 0.4), ("at_most", 0.6)],
    "ch6-remark1-linear-sqrt-l-minus-1": [("at_most", 0.0), ("at_least", 0.0)],
    "ch6-fig61b-linear-half": [("at_least", 0.48), ("at_most", 0.52), ("at_least", 1.0)],
    "ch6-theorem4-approx-norm": [("below", 0.0), ("below", 0.0)],  # "decreasing": the largest rise
    "ch6-fig67-cifar10-lenet-uap-direction-positive-curvature": TIMES,
    "ch6-fig67-cifar10-resnet-18-uap-direction-positive-curvature": TIMES,
    "ch6-fig68-imagenet-resnet-152-uap-direction-positive-curvature": TIMES,
    "ch6-fig68-imagenet-caffenet-uap-direction-positive-curvature": TIMES,
    "ch6-fig69b-sc-85": [("at_least", 0.7), ("at_least", 0.0)],
    "ch6-fig611-diversity": [("below", 0.1)],
    "ch6-fig611-retraining-insufficient": [("at_least", 0.0)],
    "ch7-sec73-other-networks-similar": [("at_least", 0.99)],
    "ch7-sec73-scenario1-connected": [("at_least", 0.99)],
    "ch7-sec73-scenario2-connected": [("at_least", 0.99)],
    "ch7-sec73-scenario3-connected": [("at_least", 0.99)],
    "ch7-sec73-scenario1-anchor-points": [("at_least", 3.0), ("at_most", 30.0)],
    "ch7-sec73-scenario2-anchor-points": [("at_least", 3.0), ("at_most", 30.0)],
    "ch7-sec73-scenario3-anchor-points": [("at_least", 3.0), ("at_most", 30.0)],
    "ch7-fig73-two-images-0p8": [("at_least", 0.65), ("at_most", 0.95)],
    "ch7-eq74-average-curvature-identity": [("at_most", 0.0)],
    "ch7-fig77-noise-in-s-worse": [("above", 0.0)],
    "ch7-fig77-flat-orthogonal": [("at_most", 0.0)] * 2,
    "ch7-table71-cifar10-lenet-adversarial": [("at_least", 0.0)],
    "ch7-table71-cifar10-nin-adversarial": [("at_least", 0.0)],
    "ch7-table71-cifar10-lenet-image-gradient": [("above", 0.0), ("above", 0.0)],
    "ch7-table71-cifar10-nin-image-gradient": [("above", 0.0), ("above", 0.0)],
} | {claim.id: BAND for claim in CLAIMS.claims if claim.expression == "0.95 <= beta(f; m) <= 1.15"}
READ |= {  # half and double the printed standard deviation
    f"ch5-table51-mnist-lenet-beta-m-over-d-1-{ratio}": [
        *BAND,
        ("at_least", spread / 2),
        ("at_most", 2 * spread),
    ]
    for ratio, spread in {4: 0.06, 16: 0.12, 36: 0.2, 64: 0.26, 100: 0.34}.items()
}
"""All bounds of the expressions: words, chains of comparisons, multiples ("a >= c b": a - c b)."""


# The file


def test_the_file_holds_every_claim_and_experiment():
    assert len(CLAIMS.claims) == 370
    assert len(CLAIMS.experiments) == 56
    assert Counter(claim.stage for claim in CLAIMS.claims) == {
        "universal": 88,
        "cure": 64,
        "attack": 60,
        "curvature": 52,
        "semirandom": 45,
        "finetune": 24,
        "detect": 16,
        "topology": 13,
        "train": 8,
    }


def test_statements_are_sentences_and_none_repeats():
    statements = [claim.statement for claim in CLAIMS.claims]
    assert len(set(statements)) == len(statements)
    assert all(text.endswith(".") and "\n" not in text for text in statements)
    assert max(map(len, statements)) < 260


def test_every_experiment_names_its_file_and_has_claims():
    for experiment in CLAIMS.experiments:
        assert experiment.file == f"stages/{experiment.stage}/{experiment.name}.py"
        assert any(claim.experiment == experiment.id for claim in CLAIMS.claims)


def test_every_experiment_with_tests_has_its_file(root):
    tested = {claim.experiment for claim in CLAIMS.claims if claim.tests}
    wanted = [experiment.file for experiment in CLAIMS.experiments if experiment.id in tested]
    assert wanted
    assert [file for file in wanted if not (root / file).exists()] == []


@pytest.mark.parametrize(
    "claim", [c for c in CLAIMS.claims if c.stage in TESTED_STAGES], ids=lambda claim: claim.id
)
def test_claims_of_built_stages_have_tests_or_say_what_they_lack(claim):
    assert claim.tests or claim.lacks
    assert not claim.tests or claim.expression
    assert claim.transferable or not claim.tests


def test_a_printed_number_that_a_test_compares_has_a_name_and_a_value():
    named = [claim for claim in CLAIMS.claims if claim.number]
    assert len(named) == 217
    assert all(claim.value is not None for claim in named)


# Frozen thresholds


def split(text, pattern):
    """Cut ``text`` where ``pattern`` matches outside of brackets; the separators are kept."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        found = re.compile(pattern).match(text, position) if depth == 0 else None
        if found:
            parts += [text[start:position].strip(), found.group().strip()]
            start = position = found.end()
        else:
            position += 1
    return [*parts, text[start:].strip()]


def bounds_of(expression):
    """The bounds that the comparisons of an expression amount to, as (number, kind, threshold)."""
    text = expression.split("#")[0].strip()
    text = re.sub(
        r" (within \w+|for one fixed \w+|with enough z|when g is parallel to u|while .*)$", "", text
    )
    wrapped = re.fullmatch(r"any_\w+\((.*)\)", text)
    found = []
    for part in split(wrapped.group(1) if wrapped else text, r" and ")[::2]:
        pieces = split(part, r"<=|>=|==|<(?!=)|>(?!=)")
        for left, sign, right in zip(pieces[::2], pieces[1::2], pieces[2::2], strict=False):
            found += compared(left, sign, right)
    return found


def parted(text):
    """What is left of "a + t", and t."""
    shifted = re.fullmatch(r"(.*\S) ([+-]) ([\d.]+)", text)
    return (
        (shifted.group(1), float(shifted.group(2) + shifted.group(3))) if shifted else (text, 0.0)
    )


def compared(left, sign, right):
    coefficient = re.match(r"(-?[\d.]+(?:e-?\d+)?)\s*(?:\*|$)", right)
    if (
        not coefficient and sign != "=="
    ):  # "a > b + t" is "a - b above t", "a - t <= b" is "b - a at_least -t"
        (first, up), (second, down) = parted(left), parted(right)
        kind = "above" if len(sign) == 1 else "at_least"
        if sign[0] == "<":
            return [(kind, up - down, f"{second} - {first}")]
        return [(kind, down - up, f"{first} - {second}")]
    if not coefficient:  # "a == max(a, b)" is "a - b at_least 0"
        assert right.startswith("max_")
        return [("at_least", 0.0, f"{left} - {right}")]
    threshold = float(coefficient.group(1))
    centred = re.fullmatch(r"abs\(.* - ([\d.]+)\)", left)
    if centred:  # "|x - c| <= t"
        middle = float(centred.group(1))
        return [("at_least", middle - threshold, ""), ("at_most", middle + threshold, "")]
    if sign == "==":
        return [("at_least", threshold, left), ("at_most", threshold, left)]
    return [
        ({"<": "below", "<=": "at_most", ">": "above", ">=": "at_least"}[sign], threshold, left)
    ]


def unshifted(number, threshold):
    """The threshold of "a" where that of "a + t" is 0."""
    shift = re.fullmatch(r".*\S ([+-]) ([\d.]+)(?:, \w+)?", number)
    return -float(shift.group(1) + shift.group(2)) if shift and threshold == 0 else threshold


@pytest.mark.parametrize("claim", [c for c in CLAIMS.claims if c.tests], ids=lambda claim: claim.id)
def test_bounds_are_those_of_the_frozen_expression(claim):
    expected = [] if claim.id in READ else bounds_of(claim.expression)
    deciding = [test for test in claim.tests if test.decides and not test.premise]
    assert any(test.premise for test in claim.tests) == ("# given " in claim.expression)
    bounds = [
        (kind, unshifted(test.number, threshold))
        for test in deciding
        for kind, threshold in test.bounds.items()
    ]
    wanted = [(kind, round(threshold, 12)) for kind, threshold, _ in expected]
    wanted += READ.get(claim.id, []) + NOT_COMPARISONS.get(claim.id, [])
    assert sorted(bounds) == sorted(wanted)
    plain = {
        name for _, _, name in expected if re.fullmatch(r"(rho|t)_\w+( [-/] (rho|t)_\w+)?", name)
    }
    assert plain <= {test.number for test in deciding}
    assert (claim.over == "any") == claim.expression.startswith("any_")


def test_a_loosened_bound_would_be_seen():
    assert bounds_of("rho_fgsm / rho_df >= 2") == [("at_least", 2.0, "rho_fgsm / rho_df")]
    assert bounds_of("a < b and b <= c") == [("above", 0.0, "b - a"), ("at_least", 0.0, "c - b")]
    assert bounds_of("f(x) > f(y) > f(z)") == [
        ("above", 0.0, "f(x) - f(y)"),
        ("above", 0.0, "f(y) - f(z)"),
    ]
    assert bounds_of("abs(beta - 1) <= 0.1") == [("at_least", 0.9, ""), ("at_most", 1.1, "")]
    assert bounds_of("norm2(a - b) <= 1e-5 * norm2(b) and n == 1  # a note") == [
        ("at_most", 1e-5, "norm2(a - b)"),
        ("at_least", 1.0, "n"),
        ("at_most", 1.0, "n"),
    ]
    assert bounds_of("a > b + 0.1") == [("above", 0.1, "a - b")]
    assert bounds_of("b - 0.25 <= a < b") == [("at_least", -0.25, "a - b"), ("above", 0.0, "b - a")]
    assert bounds_of("a >= b - 0.02") == [("at_least", -0.02, "a - b")]
    assert bounds_of("spearman(a, b) <= -0.8") == [("at_most", -0.8, "spearman(a, b)")]
    assert bounds_of("|a / b - 1| <= 0.1 with enough z") == [("at_most", 0.1, "|a / b - 1|")]
    assert bounds_of("frac_x(u < v) >= 0.95") == [("at_least", 0.95, "frac_x(u < v)")]
    assert bounds_of("max_{i<j} f(i, j) <= 0.1 within steps") == [
        ("at_most", 0.1, "max_{i<j} f(i, j)")
    ]
    assert bounds_of("f[s] == max_t(f[t])") == [("at_least", 0.0, "f[s] - max_t(f[t])")]


def test_no_expression_changed_unlisted():
    changed = {entry["id"]: entry for entry in CLAIMS.changed_thresholds}
    before = [
        f"{c.id}: {changed[c.id]['old'] if c.id in changed else c.expression}"
        for c in CLAIMS.claims
    ]
    assert hashlib.sha256("\n".join(before).encode()).hexdigest() == FROZEN
    assert all(
        BY_ID[name].expression == entry["new"] and entry["reason"]
        for name, entry in changed.items()
    )


# Intervals


@pytest.mark.parametrize(
    ("bound", "low", "high", "verdict"),
    [
        ("at_least", 2.0, 3.0, "holds"),
        ("at_least", 1.0, 2.0, "undecided"),
        ("at_least", 1.0, 1.999, "fails"),
        ("at_most", 1.0, 2.0, "holds"),
        ("at_most", 2.0, 3.0, "undecided"),
        ("at_most", 2.001, 3.0, "fails"),
        ("above", 2.001, 3.0, "holds"),
        ("above", 2.0, 3.0, "undecided"),
        ("above", 1.0, 2.0, "fails"),
        ("below", 1.0, 1.999, "holds"),
        ("below", 1.0, 2.0, "undecided"),
        ("below", 2.0, 3.0, "fails"),
        ("at_least", 2.0, 2.0, "holds"),
        ("above", 2.0, 2.0, "fails"),
        ("above", 3.0, math.inf, "holds"),
    ],
)
def test_boundaries_are_exact(bound, low, high, verdict):
    assert decide(Estimate((low + high) / 2, low, high, 10), {bound: 2.0}) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.1, "holds"),
        (0.8, 1.0, "undecided"),
        (0.5, 1.5, "undecided"),
        (1.2, 1.3, "fails"),
        (0.5, 0.8, "fails"),
    ],
)
def test_two_bounds_make_a_band(low, high, verdict):
    assert decide(Estimate(1.0, low, high, 10), {"at_least": 0.9, "at_most": 1.1}) == verdict


@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_number_that_is_not_one_leaves_the_test_open(field):
    estimate = replace(Estimate(3.0, 2.5, 3.5, 10), **{field: math.nan})
    assert decide(estimate, {"at_least": 2.0}) == "not tested here"


# Verdicts

LENET = BY_ID["ch3-table31-mnist-lenet-rho-adv-deepfool"]
NIN = BY_ID["ch3-table31-cifar10-nin-rho-adv-deepfool"]
NETWORKS = ("lenet", "fc", "nin")
COUNTERPARTS = {"default": "lenet", "LeNet": "lenet", "FC500-150-10": "fc", "NIN": "nin"}
HOLDS = {"rho_fgsm - rho_df": (0.5, 0.6), "rho_lbfgs / rho_df": (0.98, 1.1), "rho_df": (0.15, 0.2)}


def results(numbers, *, experiment="attack_l2", stage="attack", datasets=None, n=1000):
    """Results of one experiment: ``numbers`` is network -> {name: (low, high)}."""
    measured = {}
    for network, values in numbers.items():
        estimates = {k: Estimate((v[0] + v[1]) / 2, *v, n=n, seeds=3) for k, v in values.items()}
        dataset = (datasets or {}).get(network, "mnist5k")
        measured[network] = Measured(
            network, dataset, stage, (0, 1, 2), "", estimates, frozenset(), (), CLAIMS_FILE
        )
    return {experiment: measured}


def verdict(claim, found, *, networks=NETWORKS, counterparts=COUNTERPARTS):
    claims = Claims((claim,), CLAIMS.experiments, CLAIMS.value_tolerance, (), {})
    return judge(claims, found, networks=networks, counterparts=counterparts)[0]


def test_the_counterpart_decides_and_the_others_are_shown():
    found = verdict(
        NIN, results({"nin": HOLDS, "lenet": HOLDS | {"rho_lbfgs / rho_df": (0.8, 0.9)}})
    )
    assert (found.verdict, found.kind, found.why) == ("carries over", "relation", "")
    assert (found.ground, found.decided_by[0].ground_why) == (
        "far",
        "5,000 MNIST digits instead of CIFAR-10",
    )
    assert [judgement.network for judgement in found.decided_by] == ["nin"]
    assert [(judgement.network, judgement.verdict) for judgement in found.others] == [
        ("lenet", "does not carry over")
    ]
    first = found.decided_by[0].tests[0]
    assert (first.number, first.low, first.high, first.n, first.seeds) == (
        "rho_fgsm - rho_df",
        0.5,
        0.6,
        1000,
        3,
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "reproduced"),
        ({"rho_lbfgs / rho_df": (0.9, 1.1)}, "undecided"),
        ({"rho_lbfgs / rho_df": (0.8, 0.9)}, "contradicted"),
        ({"rho_lbfgs / rho_df": (0.8, 0.9), "rho_fgsm - rho_df": (-1.0, 1.0)}, "contradicted"),
    ],
)
def test_all_tests_must_hold(changes, expected):
    assert verdict(LENET, results({"lenet": HOLDS | changes})).verdict == expected


def test_a_missing_number_is_named():
    found = verdict(LENET, results({"lenet": {"rho_fgsm - rho_df": (0.5, 0.6)}}))
    assert (found.verdict, found.kind) == ("not tested here", "")
    assert found.why == "attack_l2 gives no 'rho_lbfgs / rho_df' for lenet"


def test_a_contradiction_decides_although_another_number_is_missing():
    assert (
        verdict(LENET, results({"lenet": {"rho_fgsm - rho_df": (-0.6, -0.5)}})).verdict
        == "contradicted"
    )


def test_missing_results_are_named():
    assert verdict(LENET, {}).why == "no results of stage attack for lenet"
    other = results({"lenet": {}}, experiment="dct_bands")
    assert verdict(LENET, other).why == "attack_l2 has not run on lenet"
    assert verdict(LENET, {}, counterparts={}).why == "no network of the suite answers for it"


PAIR = BY_ID["ch4-table42-vgg-f-to-caffenet"]
TWO = {"VGG-F": "lenet", "CaffeNet": "fc"}


def test_a_claim_of_two_networks_is_tested_by_the_numbers_of_its_own_pair():
    claims = Claims((PAIR,), (), 0.25, (), {})
    (claim,) = claims.on({"default": "nin", **TWO}).claims
    assert claim.number == "fool[lenet][fc]"
    assert [test.number for test in claim.tests] == [
        "fool[lenet][lenet] - fool[lenet][fc]",
        "fool[lenet][fc] - random[lenet][fc]",
    ]
    numbers = {"fool[lenet][lenet] - fool[lenet][fc]": (0.1, 0.2)}
    numbers |= {"fool[lenet][fc] - random[lenet][fc]": (0.3, 0.4)}
    found = results({"all": numbers}, experiment="uap_transfer", stage="universal_transfer")
    assert verdict(PAIR, found, counterparts={"default": "nin", **TWO}).verdict == "carries over"


@pytest.mark.parametrize(
    "counterparts",
    [{"default": "nin"}, {"VGG-F": "lenet"}, {"VGG-F": "lenet", "CaffeNet": "lenet"}],
)
def test_a_claim_of_two_networks_is_not_tested_without_one_for_each(counterparts):
    found = verdict(
        PAIR, results({"all": {}}, experiment="uap_transfer"), counterparts=counterparts
    )
    assert found.verdict == "not tested here"
    assert found.why == "lacks networks of its own for VGG-F and CaffeNet in this suite"
    own = BY_ID["ch4-table42-vgg-f-to-vgg-f"]
    (claim,) = Claims((own,), (), 0.25, (), {}).on({"VGG-F": "lenet"}).claims
    assert [test.number for test in claim.tests] == [
        "fool[lenet][lenet] - fool[lenet][t], smallest"
    ]


def test_stages_to_come_say_so():
    found = verdict(replace(BY_ID["ch4-sec431-inner-product"], tests=()), {})
    assert (found.verdict, found.why) == ("not tested here", "the stage universal is not built yet")


def test_a_claim_of_another_data_set_says_what_it_lacks():
    error = BY_ID["ch3-table31-mnist-lenet-test-error"]
    measured = results(
        {"lenet": {"test_error": (0.02, 0.04)}}, experiment="train_classifiers", stage="train"
    )
    assert verdict(error, measured).why.startswith("lacks LeNet trained on MNIST's 60,000 digits")


def test_a_claim_for_one_data_set_alone_shows_the_rest_without_deciding():
    claim = BY_ID["ch3-sec323-imagenet-one-order-vs-fgsm"]
    numbers = {"lenet": {"rho_fgsm / rho_df": (4.0, 5.0)}}
    found = verdict(claim, results(numbers))
    assert found.verdict == "not tested here"
    assert found.why.startswith("lacks an ImageNet network")
    assert [(judgement.network, judgement.verdict) for judgement in found.others] == [
        ("lenet", "does not carry over")
    ]
    measured = results(numbers, datasets={"lenet": "imagenet"})
    assert verdict(claim, measured).verdict == "does not carry over"  # another network
    assert verdict(claim, measured, counterparts={"CaffeNet": "lenet"}).verdict == "contradicted"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.018, 0.028), "reproduced"),
        ((0.016, 0.020), "undecided"),
        ((0.001, 0.017), "contradicted"),
    ],
)
def test_the_thesis_number_on_the_thesis_data_is_a_value(interval, expected):
    found = verdict(
        NIN, results({"nin": HOLDS | {"rho_df": interval}}, datasets={"nin": "cifar10"})
    )
    assert (found.verdict, found.kind) == (expected, "value")
    assert found.decided_by[0].tests[0].bounds == {
        "at_least": pytest.approx(0.01725),
        "at_most": pytest.approx(0.02875),
    }


def test_a_value_needs_the_thesis_data_its_own_counterpart_and_no_hardware():
    on_cifar = {"lenet": "cifar10", "nin": "cifar10"}
    default_only = verdict(
        NIN, results({"lenet": HOLDS}, datasets=on_cifar), counterparts={"default": "lenet"}
    )
    assert default_only.kind == "relation"
    assert not default_only.named
    tests = (Condition("t_df - t_fgsm", {"above": 0.0}),)
    seconds = replace(BY_ID["ch3-table31-cifar10-nin-time-fgsm"], tests=tests, lacks="")
    measured = results(
        {"nin": {"t_fgsm": (0.1, 0.2), "t_df - t_fgsm": (0.1, 0.2)}}, datasets=on_cifar
    )
    assert verdict(seconds, measured).kind == "relation"
    assert verdict(LENET, results({"lenet": HOLDS})).kind == "relation"


def test_a_data_set_before_the_name_of_a_network_takes_precedence():
    counterparts = {"default": "fc", "lenet": "lenet", "CIFAR-10 LeNet": "nin"}
    claim = BY_ID["ch3-table31-cifar10-lenet-rho-adv-deepfool"]
    found = verdict(claim, results(dict.fromkeys(NETWORKS, HOLDS)), counterparts=counterparts)
    assert [judgement.network for judgement in found.decided_by] == ["nin"]
    found = verdict(LENET, results(dict.fromkeys(NETWORKS, HOLDS)), counterparts=counterparts)
    assert [judgement.network for judgement in found.decided_by] == ["lenet"]


def test_every_network_that_a_claim_names_decides():
    claim = BY_ID["ch3-fig36-mnist-deepfool-ft-gain"]
    numbers = {"lenet": (1.3, 1.5), "fc": (1.1, 1.3), "nin": (0.5, 0.6)}
    found = verdict(
        claim,
        results(
            {
                network: {"rho_ft_deepfool_5 / rho_original": interval}
                for network, interval in numbers.items()
            },
            experiment="advft_robustness",
            stage="finetune",
        ),
    )
    assert [judgement.network for judgement in found.decided_by] == ["lenet", "fc"]
    assert found.verdict == "undecided"


@pytest.mark.parametrize(
    ("over", "intervals", "expected"),
    [
        ("all", [(1, 2), (1, 2), (1, 2)], "carries over"),
        ("all", [(1, 2), (-1, 2), (1, 2)], "undecided"),
        ("all", [(1, 2), (-1, 2), (-2, -1)], "does not carry over"),
        ("all", [(1, 2), (1, 2), None], "not tested here"),
        ("all", [(-2, -1), (1, 2), None], "does not carry over"),
        ("any", [(-2, -1), (1, 2), (-2, -1)], "carries over"),
        ("any", [(-2, -1), (1, 2), None], "carries over"),
        ("any", [(-2, -1), (-1, 2), (-2, -1)], "undecided"),
        ("any", [(-2, -1), (-2, -1), (-2, -1)], "does not carry over"),
        ("any", [(-2, -1), (-2, -1), None], "not tested here"),
    ],
)
def test_over_all_and_over_any(over, intervals, expected):
    claim = replace(LENET, over=over, tests=(Condition("x", {"above": 0.0}),))
    numbers = {n: {"x": i} for n, i in zip(NETWORKS, intervals, strict=True) if i is not None}
    far = dict.fromkeys(NETWORKS, "fashion_mnist")  # one ground for all three
    found = verdict(claim, results(numbers, datasets=far))
    assert found.verdict == expected
    assert len(found.decided_by) == 3
    assert found.others == ()
    assert (found.why == "no results of stage attack for nin") == (expected == "not tested here")


def test_a_test_that_is_only_shown_does_not_decide():
    claim = BY_ID["ch3-fig39-fgsm-exaggerates-gain"]
    numbers = {
        "text: gain_fgsm_5 - gain_df_5": (0.1, 0.2),
        "caption: gain_fgsm_5 - gain_df_5": (-0.2, -0.1),
    }
    found = verdict(claim, results({"nin": numbers}, experiment="advft_judged", stage="finetune"))
    assert found.verdict == "carries over"
    assert [(o.verdict, o.decides) for o in found.decided_by[0].tests] == [
        ("holds", True),
        ("fails", False),
    ]


@pytest.mark.parametrize(
    ("premise", "tested", "expected"),
    [
        ((0.0, 0.05), (0.0, 0.05), "reproduced"),
        ((0.0, 0.05), (-0.3, -0.2), "contradicted"),
        ((0.05, 0.2), (0.05, 0.2), "undecided"),
        ((0.3, 0.6), (0.3, 0.6), "undecided"),
        ((0.3, 0.6), (-0.3, -0.2), "undecided"),
        (None, (0.0, 0.05), "not tested here"),
    ],
)
def test_nothing_is_decided_without_the_premise(premise, tested, expected):
    tests = (
        Condition("x", {"at_least": -0.02}),
        Condition("strength", {"at_most": 0.1}, premise=True),
    )
    numbers = {"x": tested} | ({} if premise is None else {"strength": premise})
    found = verdict(replace(LENET, tests=tests), results({"lenet": numbers}))
    assert found.verdict == expected
    assert [outcome.premise for outcome in found.decided_by[0].tests] == [False, True]


# The verdicts' file


def test_the_file_of_verdicts_is_stable_and_counted(tmp_path):
    found = results({"lenet": HOLDS, "nin": HOLDS}, datasets={"nin": "cifar10"})
    verdicts = judge(CLAIMS, found, networks=NETWORKS, counterparts=COUNTERPARTS)
    path = tmp_path / "results" / "claims.json"
    write_verdicts(path, "embedded", CLAIMS, verdicts)
    first = path.read_bytes()
    write_verdicts(path, "embedded", CLAIMS, verdicts)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["claims.json"]
    content = json.loads(first)
    assert list(content) == sorted(content)
    assert len(content["claims"]) == 370 == sum(content["counts"]["verdict"].values())
    assert set(content["counts"]["verdict"]) <= set(VERDICTS)
    assert sum(sum(stage.values()) for stage in content["counts"]["stage"].values()) == 370
    tested = sum(
        number for name, number in content["counts"]["verdict"].items() if name != "not tested here"
    )
    assert sum(sum(kind.values()) for kind in content["counts"]["kind"].values()) == tested > 0
    asked = content["counts"]["tests"]
    assert 0 < asked["decided"] <= asked["asked"] == sum(asked["verdict"].values()) <= tested
    chapters = content["counts"]["chapter"].values()
    assert sum(chapter["asked"] for chapter in chapters) == asked["asked"]
    assert content["counts"]["kind"]["value"] == {"contradicted": 1}


# Bad files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"claims\.c\.colour must be one of.*; got 'red'"),
        ({"statement": None}, r"claims\.c\.statement must be .*; got '?(\(absent\)|nothing)"),
        ({"relation": "rather"}, r"claims\.c\.relation must be .*; got 'rather'"),
        ({"over": "most"}, r"claims\.c\.over must be .*; got 'most'"),
        ({"about": "Fashion-MNIST"}, r"claims\.c\.about must be .*; got 'Fashion-MNIST'"),
        ({"about": "made up"}, r"claims\.c\.about must be .*; got 'made up'"),
        ({"arithmetic": True}, r"claims\.c\.note must be why the test is .*; got nothing"),
        ({"arithmetic": "because"}, r"claims\.c\.arithmetic must be .*; got 'because'"),
        ({"reason": "weather"}, r"claims\.c\.reason must be one of .*; got 'weather'"),
        (
            {"only_on": "MNIST", "tests": [{"number": "x", "above": 0}]},
            r"claims\.c\.lacks must be .*; got '?(\(absent\)|nothing)",
        ),
        ({"number": "x"}, r"claims\.c\.lacks must be .*; got '?(\(absent\)|nothing)"),
        ({"tests": [{"number": "x"}]}, r"claims\.c\.tests must be"),
        ({"tests": [{"number": "x", "over": 3}]}, r"claims\.c\.tests must be"),
        (
            {"tests": [{"number": "x", "above": "much"}]},
            r"claims\.c\.tests\.above must be .*; got 'much'",
        ),
        (
            {"tests": [{"number": "x", "above": 0, "decides": False}]},
            r"claims\.c\.tests must be .*; got '?decides: false or premise: true throughout",
        ),
        (
            {"stage": "train"},
            r"claims\.c\.experiment must be an experiment of stage train.*; got 'e'",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(tmp_path, change, message):
    claim = {
        "id": "c",
        "experiment": "e",
        "stage": "attack",
        "where": "w",
        "statement": "s.",
        "quantity": "q",
        "relation": "approx",
        "transferable": True,
    } | change
    experiment = {
        "id": "e",
        "file": "stages/attack/e.py",
        "title": "t",
        "where": "w",
        "measures": "m",
        "thesis_networks": "n",
        "thesis_samples": "s",
    }
    content = {
        "value_tolerance": 0.25,
        "changed_thresholds": [],
        "symbols": {},
        "experiments": [experiment],
        "claims": [{key: value for key, value in claim.items() if value is not None}],
    }
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        load_claims(path)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    content = yaml.safe_load(CLAIMS_FILE.read_text())
    content["claims"].append(content["claims"][0])
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(
        InputError,
        match=r"claims must be entries whose ids occur once.*; got 'ch3-table31-mnist-lenet-test-"
        r"error'",
    ):
        load_claims(path)
