"""Verdicts say on what ground they stand, and what shares one test is counted once."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.claims import Claims, Condition, load_claims
from pipeline.report.beside import Material
from pipeline.report.counting import by_test, tally
from pipeline.report.front import chapter_fronts, failures, network_words
from pipeline.report.grounds import Grounds, check_kin
from pipeline.report.overall import Suite, combine, judged, suites
from pipeline.report.results import Measured
from pipeline.report.verdicts import Verdict, judge
from pipeline.report.words import VERDICTS
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError

CLAIMS = load_claims()
BY_ID = {claim.id: claim for claim in CLAIMS.claims}
DIGITS = {"default": "lenet", "LeNet": "lenet", "FC500-150-10": "fc", "NIN": "nin", "NiN": "nin"}
KIN = {"CIFAR-10": "small pictures of objects"}


@pytest.mark.parametrize(
    ("claim", "network", "dataset", "kin", "expected"),
    [
        ("ch3-table31-mnist-lenet-rho-adv-fgsm", "lenet", "mnist5k", {}, "own"),
        ("ch3-table31-mnist-lenet-rho-adv-fgsm", "lenet", "mnist", {}, "own"),
        ("ch3-table31-mnist-lenet-rho-adv-fgsm", "fc", "mnist5k", {}, "far"),  # another network
        ("ch3-table31-mnist-lenet-rho-adv-fgsm", "lenet", "fashion_mnist", KIN, "far"),
        ("ch3-table31-cifar10-lenet-rho-adv-fgsm", "lenet", "mnist5k", {}, "far"),
        ("ch3-table31-cifar10-nin-rho-adv-fgsm", "nin", "fashion_mnist", KIN, "kin"),
        ("ch3-table31-cifar10-nin-rho-adv-fgsm", "nin", "cifar10", {}, "own"),
        ("ch3-table31-imagenet-caffenet-rho-adv-deepfool", "nin", "fashion_mnist", KIN, "far"),
        ("ch3-table31-imagenet-caffenet-rho-adv-deepfool", "b", "x", {"ImageNet": "photos"}, "kin"),
        # A claim that names no network is about those of its neighbours.
        ("ch3-sec323-deepfool-iterations", "fc", "mnist5k", {}, "own"),
        ("ch3-sec323-deepfool-iterations", "nin", "mnist5k", {}, "far"),
        ("ch5-obs1-orthogonality", "lenet", "mnist5k", {}, "own"),  # those of its chapter
        ("ch3-fig310-band-norm-increases", "lenet", "mnist5k", {}, "far"),
        ("ch8-fig88-resnet18-linear-loss", "b", "fashion_mnist", KIN, "kin"),
        ("ch3-fig312-watermark", "lenet", "mnist5k", {}, "far"),  # by its own word
        ("ch3-eq32-affine-binary-closed-form", "lenet", "mnist5k", {}, "theorem"),
        ("ch6-sec631-linear-rank1", "lenet", "mnist5k", {}, "theorem"),
        ("ch8-theorem5-bounds", "b", "fashion_mnist", KIN, "theorem"),
        ("ch6-fig612-principal-angles", "all", "fashion_mnist", KIN, "kin"),
    ],
)
def test_the_ground_follows_from_data_network_and_suite(claim, network, dataset, kin, expected):
    ground = Grounds(CLAIMS, DIGITS, kin).of(BY_ID[claim], network, dataset)
    assert ground.name == expected
    assert ground.why


@pytest.mark.parametrize(
    ("kin", "message"),
    [
        ({"Fashion-MNIST": "why"}, r"suite\.kin must be one of MNIST, .*; got 'Fashion-MNIST'"),
        ({"cifar10": "why"}, r"suite\.kin must be one of MNIST, .*; got 'cifar10'"),
        ({"SVHN": ""}, r"suite\.kin\.SVHN must be why .*; got nothing"),
    ],
)
def test_a_kin_that_is_no_data_set_of_the_thesis_is_refused(kin, message):
    with pytest.raises(InputError, match=message):
        check_kin(kin)
    with pytest.raises(InputError, match=message):
        judge(CLAIMS, {}, networks=("lenet",), counterparts=DIGITS, kin=kin)


# Verdicts of one suite

TWO = ("ch3-sec323-deepfool-slightly-smaller-than-lbfgs", "rho_lbfgs / rho_df")


def measured(numbers, *, dataset="mnist5k", experiment="attack_l2"):
    """Results of one experiment: ``numbers`` is network -> {name: (low, high)}."""
    return {
        experiment: {
            network: Measured(
                network,
                dataset,
                "attack",
                (0, 1, 2),
                "",
                {name: Estimate(sum(v) / 2, *v, n=100, seeds=3) for name, v in values.items()},
                frozenset(),
                (),
                Path(),
            )
            for network, values in numbers.items()
        }
    }


def verdicts(found, claims=CLAIMS, **changes):
    given = {"networks": ("lenet", "fc", "nin"), "counterparts": DIGITS} | changes
    return {verdict.id: verdict for verdict in judge(claims, found, **given)}


@pytest.mark.parametrize(
    ("lenet", "fc", "nin", "expected", "decide", "beside"),
    [
        ((1, 2), (1, 2), (0.8, 0.9), "reproduced", ["lenet", "fc"], ["does not carry over"]),
        ((0.9, 2), (1, 2), (0.8, 0.9), "undecided", ["lenet", "fc"], ["does not carry over"]),
        ((0.8, 0.9), (1, 2), (1, 2), "contradicted", ["lenet", "fc"], ["carries over"]),
        (None, None, (1, 2), "not tested here", ["lenet", "fc", "nin"], []),
    ],
)
def test_the_nearest_ground_decides_for_every_network(lenet, fc, nin, expected, decide, beside):
    name, number = TWO
    given = {"lenet": lenet, "fc": fc, "nin": nin}
    found = measured({n: {number: v} for n, v in given.items() if v})
    verdict = verdicts(found)[name]
    assert verdict.verdict == expected
    assert [judgement.network for judgement in verdict.decided_by] == decide
    assert [judgement.verdict for judgement in verdict.others] == beside


def test_one_network_is_enough_whatever_its_ground():
    name, number = TWO
    claims = replace(CLAIMS, claims=(replace(BY_ID[name], over="any"),))
    found = {"lenet": {number: (0.8, 0.9)}, "fc": {number: (0.8, 0.9)}, "nin": {number: (1, 2)}}
    about = replace(claims, claims=(*claims.claims, BY_ID["ch3-table31-mnist-lenet-rho-adv-fgsm"]))
    verdict = verdicts(measured(found), about)[name]
    assert (verdict.verdict, verdict.ground) == ("carries over", "far")


def test_an_arithmetic_test_is_never_reproduced_and_counted_apart():
    name = "ch7-table71-cifar10-lenet-random"
    assert BY_ID[name].arithmetic
    numbers = {"lenet": {"proj_random - sqrt(m / d), absolute": (0.0, 0.01)}}
    found = verdicts(measured(numbers, experiment="projection_share"))
    assert (found[name].verdict, found[name].ground) == ("arithmetic", "far")
    counted = tally([found[name]])
    assert (counted.asked, counted.decided, counted.claims["arithmetic"]) == (0, 0, 1)


def test_claims_that_share_one_test_count_once_in_the_words_of_the_nearest_ground():
    numbers = {"lenet": {"rho_fgsm / rho_df": (3, 4)}, "nin": {"rho_fgsm / rho_df": (1, 3)}}
    found = verdicts(measured(numbers))
    ids = [f"ch3-table31-{name}-rho-adv-fgsm" for name in ("cifar10-lenet", "mnist-lenet")]
    shared = [found[name] for name in ids]
    assert [verdict.verdict for verdict in shared] == ["carries over", "reproduced"]
    assert len({verdict.test for verdict in shared}) == 1
    assert [verdict.id for verdict in by_test(shared)] == [ids[1]]
    other = found["ch3-table31-cifar10-nin-rho-adv-fgsm"]
    counted = tally([*shared, other])
    assert (counted.asked, counted.decided) == (2, 1)
    assert sum(counted.claims.values()) == 3


def test_the_same_numbers_with_other_bounds_are_another_test():
    claim = BY_ID["ch3-table31-mnist-lenet-rho-adv-fgsm"]
    looser = replace(claim, id="ch3-x", tests=(Condition("rho_fgsm / rho_df", {"at_least": 1.5}),))
    claims = Claims((claim, looser), CLAIMS.experiments, 0.25, (), {})
    found = verdicts(measured({"lenet": {"rho_fgsm / rho_df": (3, 4)}}), claims)
    assert found["ch3-x"].test != found[claim.id].test


# Over all suites


def verdict(word, ground, test="t"):
    return Verdict("ch3-x", "attack", word, "relation", "", ground=ground, test=test)


NOTHING = Verdict("ch3-x", "attack", "not tested here", "", "why")


@pytest.mark.parametrize(
    ("given", "expected", "decide"),
    [
        ({"a": NOTHING, "b": NOTHING}, ("not tested here", ""), []),
        ({"a": verdict("carries over", "far"), "b": NOTHING}, ("carries over", "far"), ["a"]),
        (
            {"a": verdict("carries over", "far"), "b": verdict("does not carry over", "kin")},
            ("does not carry over", "kin"),
            ["b"],
        ),
        (
            {"a": verdict("carries over", "kin"), "b": verdict("undecided", "own")},
            ("undecided", "own"),
            ["b"],
        ),
        (
            {"a": verdict("reproduced", "own"), "b": verdict("undecided", "own")},
            ("reproduced", "own"),
            ["a", "b"],
        ),
        (
            {"a": verdict("reproduced", "own"), "b": verdict("contradicted", "own")},
            ("undecided", "own"),
            ["a", "b"],
        ),
        ({"a": verdict("arithmetic", "far")}, ("arithmetic", "far"), ["a"]),
    ],
)
def test_over_all_suites_the_nearest_ground_decides(given, expected, decide):
    standing = combine(replace(BY_ID[TWO[0]], id="ch3-x"), given)
    assert (standing.verdict, standing.ground) == expected
    assert [each.suite for each in standing.decided_by] == decide
    tested = [name for name, each in given.items() if each.ground]
    assert sorted([*decide, *(each.suite for each in standing.beside)]) == sorted(tested)


def test_suites_are_read_from_their_files_and_old_verdicts_are_not_needed(root, tmp_path):
    found = {suite.name: suite for suite in suites(root)}
    assert "smoke" not in found
    fashion = found["fashion"]
    assert "fashion_lenet" in fashion.networks
    assert "CIFAR-10" in fashion.kin
    assert suites(tmp_path) == []
    words = {verdict.verdict for verdict in judged(root, fashion, CLAIMS)}
    assert words <= set(VERDICTS)
    assert {"carries over", "not tested here"} <= words


def test_a_suite_without_networks_is_refused(tmp_path):
    (tmp_path / "conf/suite").mkdir(parents=True)
    (tmp_path / "conf/suite/x.yaml").write_text("defaults: [_self_]\nsuite: {name: x}\n")
    (tmp_path / "results/x/attack/n").mkdir(parents=True)
    (tmp_path / "results/x/attack/n/metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"defaults must be a list with .*x\.yaml"):
        suites(tmp_path)


def test_times_that_are_not_kept_come_from_the_file_of_verdicts(root):
    names = {"ch3-sec323-deepfool-faster-than-lbfgs"}
    (embedded,) = (suite for suite in suites(root) if suite.name == "embedded")
    found = {verdict.id: verdict for verdict in judged(root, embedded, CLAIMS)}
    assert all(found[name].verdict != "not tested here" for name in names)
    assert isinstance(embedded, Suite)


# The first page


def test_chapters_are_summed_up_in_two_sentences_and_failures_have_reasons():
    numbers = {
        "lenet": {
            "rho_fgsm / rho_df": (3.0, 3.2),
            "rho_fgsm - rho_df": (1, 2),
            "rho_lbfgs / rho_df": (0.8, 0.9),
        }
    }
    found = measured(numbers)
    judgements = list(verdicts(found).values())
    pairs = list(zip(CLAIMS.claims, judgements, strict=True))
    words = network_words({"lenet": ("lenet", "mnist5k")})
    fronts = chapter_fronts(Material(CLAIMS.experiments, pairs, found, ["lenet"]), words)
    first = fronts[0]
    assert first.sentences[0].startswith("Of ")
    assert first.sentences[1] == (
        "For LeNet on 5,000 MNIST digits, FGSM's perturbations are 3.10 [3.00, 3.20] times as "
        "large as DeepFool's (reproduced)."
    )
    assert first.figure is None
    assert fronts[1].sentences == ("Nothing of this chapter is tested here.",)
    failing = failures(pairs, words)["not-minimal"]
    failure = next(f for f in failing if f.verdict.id == "ch3-table31-mnist-lenet-rho-adv-deepfool")
    assert failure.verdict.verdict == "contradicted"
    assert failure.measured == "ρ̂ L-BFGS / ρ̂ DeepFool is 0.85 [0.80, 0.90], and should be ≥ 0.98"
    assert len(failure.claims) == 2  # that on CIFAR-10's LeNet has the same test


def test_every_reason_is_used_and_every_headline_names_numbers():
    used = {claim.reason for claim in CLAIMS.claims} - {""}
    assert used == set(CLAIMS.reasons)
    headlines = [claim for claim in CLAIMS.claims if claim.headline]
    assert {claim.chapter for claim in headlines} == {3, 4, 5, 6, 7, 8}
    assert all("{" in claim.headline for claim in headlines)
