"""The page: whole, self-contained, honest about what is missing."""

import json
import math
import re
import struct
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.claims import Experiment, load_claims
from pipeline.report import provenance, read_results, write_overall, write_report
from pipeline.report.text import bounds_text, counts_text, estimate_text, label, printed, unit
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError

NETWORKS = {
    "mnist5k_lenet": {
        "dataset": "mnist5k",
        "model": {"_target_": "robustness_geometry.models.lenet"},
        "training": {"epochs": 12},
    },
    "mnist5k_nin": {
        "dataset": "mnist5k",
        "model": {"_target_": "robustness_geometry.models.nin", "width": 32},
        "training": {},
    },
}
COUNTERPARTS = {
    "default": "mnist5k_lenet",
    "LeNet": "mnist5k_lenet",
    "FC500-150-10": "mnist5k_lenet",
    "NIN": "mnist5k_nin",
}
FILES = (
    "metrics.json",
    "figures/attack_l2_norms_by_attack.png",
    "tables/attack_l2_by_class.csv",
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


def png(shade: int = 200) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = zlib.compress(bytes([0, shade]))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def entry(value, low=None, high=None, n=1000, seeds=3, std=None):
    low = value if low is None else low
    high = value if high is None else high
    return {"value": value, "low": low, "high": high, "n": n, "std": std, "seeds": seeds}


def write_stage(
    results: Path, stage: str, network: str, experiments: dict, *, timings=None, dataset="mnist5k"
) -> Path:
    folder = results / stage / network
    for part in ("figures", "tables"):
        (folder / part).mkdir(parents=True)
    content = {
        "network": network,
        "dataset": dataset,
        "seeds": [0, 1, 2],
        "experiments": experiments,
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "timings.json").write_text(json.dumps({"experiments": timings or {}}))
    return folder


def attack_numbers():
    return {
        "rho_df": entry(0.163, 0.160, 0.166),
        "rho_fgsm": entry(0.81, 0.78, 0.84),
        "rho_lbfgs": entry(0.171, 0.165, 0.177),
        "rho_fgsm / rho_df": entry(4.97, 4.8, 5.1),
        "rho_fgsm - rho_df": entry(0.647, 0.62, 0.67),
        "rho_lbfgs / rho_df": entry(1.01, 0.97, 1.05),
        "rho_fgsm - rho_lbfgs": entry(0.64, 0.61, 0.67),
        "steps_df": entry(2.4, 2.35, 2.45),
        "share_df_below_fgsm": entry(0.93, 0.91, 0.945),
        "fooling_limit_fgsm": entry(None),
    }


@pytest.fixture
def built(tmp_path):
    results = tmp_path / "results" / "embedded"
    write_stage(
        results,
        "train",
        "mnist5k_lenet",
        {
            "train_classifiers": {
                "section": "Table 3.1",
                "numbers": {"test_error": entry(0.034, 0.025, 0.043)},
                "curves": {},
                "notes": [],
            }
        },
    )
    folder = write_stage(
        results,
        "attack",
        "mnist5k_lenet",
        {
            "attack_l2": {
                "section": "Table 3.1",
                "numbers": attack_numbers(),
                "curves": {},
                "notes": ["3 of 1,000 <images> were not fooled & are left out."],
            },
            "attack_linf": {
                "section": "Table 3.2",
                "numbers": {"rho_inf_df": entry(0.1)},
                "curves": {},
                "notes": [],
            },
        },
        timings={
            "attack_l2": {
                "numbers": {
                    "t_df": entry(0.0022, 0.0021, 0.0023),
                    "t_df - t_fgsm": entry(0.002, 0.001, 0.003),
                }
            }
        },
    )
    (folder / "figures" / "attack_l2_norms_by_attack.png").write_bytes(png())
    (folder / "figures" / "attack_linf_norms.png").write_bytes(png(10))
    (folder / "figures" / "attack_l2_cut_off.png").write_bytes(png()[:-6])
    (folder / "tables" / "attack_l2_by_class.csv").write_text(
        "class,rho\n" + "".join(f"{k},0.1{k}\n" for k in range(80))
    )
    write_stage(
        results,
        "attack",
        "left_over",
        {"attack_l2": {"section": "", "numbers": {}, "curves": {}, "notes": []}},
    )
    return tmp_path


def make(folder, **changes):
    given = {
        "networks": NETWORKS,
        "counterparts": COUNTERPARTS,
        "provenance": {"Commit": "abc<1>"},
        "description": "5,000 digits",
    } | changes
    return write_report("embedded", folder / "results", folder / "reports", **given)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.sources = [], [], [], [], []
        self.words = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [
            found[name] for name in ("src", "srcset", "poster", "data") if name in found
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_page_is_well_formed_and_needs_nothing_else(built):
    path = make(built)
    text = path.read_text()
    page = Page(text)
    assert path == built / "reports" / "embedded" / "index.html"
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)
    assert len(page.ids) == len(set(page.ids))
    anchors = {link for link in page.links if link.startswith("#")}
    assert {link.removeprefix("#") for link in anchors} <= set(page.ids)
    files = set(page.links) - anchors
    assert {f"../../results/embedded/attack/mnist5k_lenet/{name}" for name in FILES} <= files
    assert all((path.parent / link).exists() for link in files)


def test_every_claim_stands_on_the_page_once(built):
    page = Page(make(built).read_text())
    claims = load_claims().claims
    assert all(page.ids.count(claim.id) == 1 for claim in claims)
    assert all(re.sub(r"\s+", " ", claim.statement) in page.text for claim in claims)


def test_figures_are_embedded_and_a_broken_one_is_named(built):
    page = Page(make(built).read_text())
    assert len(page.sources) == 3  # one of the two stands on the first page as well
    assert len(set(page.sources)) == 2
    assert "attack_l2_cut_off.png is not a whole PNG file" in page.text
    assert "n = 1,000, 3 training seeds" in page.text


def test_missing_stages_and_experiments_are_named(built):
    text = Page(make(built).read_text()).text
    assert "no results of stage finetune for mnist5k_lenet" in text
    assert "no results of stage attack for mnist5k_nin" in text
    assert "dct_bands has not run on mnist5k_lenet" in text
    assert "left_over" not in text


def test_the_page_can_be_written_without_any_results(tmp_path):
    text = Page(make(tmp_path).read_text()).text
    assert "No results of this chapter are here" in text
    assert json.loads((tmp_path / "results/embedded/claims.json").read_text())["counts"][
        "verdict"
    ] == {"not tested here": 370}


def test_thesis_rows_stand_beneath_the_network_that_answers(built):
    text = make(built).read_text()
    table = text[text.rindex("<b>Table 3.1</b> beside") :]
    table = re.sub(r"<[^>]+>", " ", table[: table.index("</table>")])
    words = re.sub(r"\s+", " ", unescape(table))
    order = [
        words.index(name)
        for name in (
            "mnist5k_lenet",
            "thesis MNIST LeNet",
            "thesis MNIST FC500-150-10",
            "mnist5k_nin",
            "thesis CIFAR-10 NIN",
            "thesis ImageNet CaffeNet",
        )
    ]
    assert order == sorted(order)
    assert "3.4% [2.5, 4.3]" in words
    assert "2.20 ms" in words
    assert "> 4 s" in words
    assert "0.0027" in words


def test_whatever_results_and_settings_say_is_escaped(built):
    text = make(built, description="<script>alert(1)</script>").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "3 of 1,000 &lt;images&gt; were not fooled &amp; are left out." in text
    assert "abc&lt;1&gt;" in text


def test_long_tables_are_cut_and_say_so(built):
    assert "20 more rows in the file" in Page(make(built).read_text()).text


def test_every_measured_experiment_says_how_to_run_it_again(built):
    text = Page(make(built).read_text()).text
    assert "dvc repro --force --single-item attack@mnist5k_lenet" in text
    assert "python -m stages.attack network=mnist5k_lenet 'experiments=[attack_l2]'" in text


def test_verdicts_and_page_are_the_same_bytes_again(built):
    first = make(built).read_bytes(), (built / "results/embedded/claims.json").read_bytes()
    assert (
        make(built).read_bytes(),
        (built / "results/embedded/claims.json").read_bytes(),
    ) == first
    names = {path.name for path in built.rglob("*") if path.is_file()}
    assert not any(name.startswith(".") for name in names)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"network": "mnist5k_lenet"}', '{"experiments": {"a": {"numbers": 3}}}']
)
def test_a_broken_metrics_file_is_one_clear_line(built, content):
    path = built / "results/embedded/attack/mnist5k_lenet/metrics.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"^results must be .*; got '?.*metrics\.json"):
        make(built)


def test_null_is_read_as_not_a_number(built):
    measured = read_results(built / "results/embedded", NETWORKS)["attack_l2"]["mnist5k_lenet"]
    assert math.isnan(measured.numbers["fooling_limit_fgsm"].value)
    assert measured.numbers["t_df"].value == 0.0022
    assert measured.timings == {"t_df", "t_df - t_fgsm"}
    assert measured.stage == "attack"
    assert measured.training_seeds == (0, 1, 2)


def test_provenance_names_versions_and_commit(root, tmp_path):
    found = provenance(root)
    assert "torch" in found["Packages"]
    assert provenance(tmp_path)["Commit"] == "unknown"


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "shown"),
    [
        ("rho_df", 0.16312, 0.158, 0.168, ("0.163", "[0.158, 0.168]")),
        ("test_error", 0.034, 0.025, 0.043, ("3.4%", "[2.5, 4.3]")),
        ("err_original - err_ft_clean", 0.002, -0.003, 0.0071, ("0.2 pp", "[−0.3, 0.7]")),
        ("t_df", 0.0022, 0.00213, 0.0023, ("2.20 ms", "[2.13, 2.30]")),
        ("t_df", 2.5, 2.1, 2.9, ("2.5 s", "[2.1, 2.9]")),
        ("binary_error", 1.2e-16, 0.0, 2.3e-16, ("1.2 × 10⁻¹⁶", "[0, 2.3 × 10⁻¹⁶]")),
        ("binary_steps", 1.0, 1.0, 1.0, ("1", "[1, 1]")),
        ("share_fooled", 1.0, 1.0, 1.0, ("100%", "[100, 100]")),
        ("x", 12345.6, 12000, 12500, ("12,346", "[12,000, 12,500]")),
        ("x", 4.321, math.nan, math.nan, ("4.32", "")),
        ("x", math.inf, 3.0, math.inf, ("∞", "[3, ∞]")),
        ("x", math.nan, 0.0, 0.0, ("not measured", "")),
        ("x", 0.0, 0.0, 0.0, ("0", "[0, 0]")),
    ],
)
def test_numbers_have_sensible_digits_and_units(name, value, low, high, shown):
    assert estimate_text(name, Estimate(value, low, high, 10)) == shown


def test_printed_numbers_keep_the_digits_of_the_thesis():
    assert printed("test_error", 0.226) == "22.6%"
    assert printed("rho_df", 0.0027) == "0.0027"
    assert printed("t_lbfgs", 4, relation="at_least") == "> 4 s"
    assert printed("", 1.01, spread=0.12) == "1.01 ± 0.12"
    assert bounds_text("binary_error", {"at_most": 1e-5}) == "≤ 10⁻⁵"
    assert bounds_text("binary_steps", {"at_least": 1, "at_most": 1}) == "= 1"
    assert bounds_text("beta_random", {"at_least": 0.9, "at_most": 1.1}) == "0.9 to 1.1"
    assert bounds_text("share_fooled", {"above": 0.5}) == "> 50%"


def test_counts_and_units():
    assert counts_text([(1000, 1)]) == "n = 1,000, 1 training seed"
    assert counts_text([(1000, 3), (200, 3)]) == "n = 200 to 1,000, 3 training seeds"
    assert counts_text([]) == "" == counts_text([(0, 0)])
    assert unit("t_lbfgs / t_df") == "" == unit("rho_df")
    assert label("median_first") == "median first"


# Beyond the thesis


def write_beyond(built, name="attack_l2_confidence", stage="attack"):
    """Results of an experiment whose name another's begins, beside those that are there."""
    path = built / "results/embedded" / stage / "mnist5k_lenet" / "metrics.json"
    content = json.loads(path.read_text())
    content["experiments"][name] = {
        "section": "beyond the thesis",
        "numbers": {"correlation": entry(0.42, 0.4, 0.44)},
        "curves": {},
        "notes": ["Measured on <all> images."],
    }
    path.write_text(json.dumps(content))
    (path.parent / "figures" / f"{name}_scatter.png").write_bytes(png(77))
    (path.parent / "tables" / f"{name}_by_bin.csv").write_text("bin,norm\n1,0.25\n")


def beyond_section(page: Path) -> str:
    text = page.read_text()
    assert len(Page(text).ids) == len(set(Page(text).ids))
    start = text.index('<section id="beyond"')
    assert text.rindex('<section id="chapter-') < start < text.index('<section id="provenance"')
    return text[start : text.index("</section>", start)]


def test_without_one_there_is_no_section_for_experiments_beyond_the_thesis(built):
    assert "Beyond the thesis" not in make(built).read_text()


def test_an_experiment_beyond_the_thesis_stands_at_the_end(built):
    before, claims = make(built), built / "results/embedded/claims.json"
    chapters = before.read_text().count("data:image/png"), claims.read_bytes()
    write_beyond(built)
    page = make(built)
    section = beyond_section(page)
    words = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", section)))
    for text in (
        "Attack l2 confidence",
        "beyond the thesis",
        "Here: mnist5k_lenet; n = 1,000, 3 training seeds.",
        "Has not run on mnist5k_nin.",
        "Scatter",
        "Measured on <all> images.",
        "correlation 0.420 [0.400, 0.440]",
        "By bin",
        "'experiments=[attack_l2_confidence]'",
        "Code: stages/attack/attack_l2_confidence.py",
    ):
        assert text in words
    assert "Thesis:" not in words
    assert "claims" not in words
    assert section.count("data:image/png") == 1
    assert page.read_text().count("data:image/png") == chapters[0] + 1
    assert claims.read_bytes() == chapters[1]
    assert "#attack_l2_confidence" in Page(page.read_text()).links


def test_a_declared_experiment_without_claims_is_beyond_the_thesis(built):
    write_beyond(built, "confidence")
    claims = load_claims()
    declared = Experiment(
        "confidence",
        "stages/attack/confidence.py",
        "Robustness against confidence",
        "beyond the thesis",
        "How the norm depends on the confidence.",
        "",
        "",
    )
    idle = replace(declared, id="not-run", title="One that has not run")
    experiments = (*claims.experiments, declared, idle)
    section = beyond_section(make(built, claims=replace(claims, experiments=experiments)))
    assert "Robustness against confidence" in section
    assert "How the norm depends on the confidence." in section
    assert "One that has not run" not in section


def test_an_experiment_beyond_the_thesis_may_be_across_networks(built):
    folder = write_stage(built / "results/embedded", "curvature_transfer", "all", {})
    content = json.loads((folder / "metrics.json").read_text())
    content["experiments"]["angle_transfer"] = {
        "section": "beyond the thesis",
        "numbers": {"angle": entry(0.5)},
        "curves": {},
        "notes": [],
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    section = unescape(beyond_section(make(built)))
    assert "python -m stages.curvature_transfer 'experiments=[angle_transfer]'" in section
    assert "stages/curvature/angle_transfer.py" in section


# The page over all suites


def test_the_page_over_all_suites_names_every_distinct_test_and_what_stands_beside_it(
    root, tmp_path
):
    for folder in ("conf/suite", "results"):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder).symlink_to(root / folder)
    page = write_overall(tmp_path)
    assert page == tmp_path / "reports" / "index.html"
    text = page.read_text()
    words = Page(text)
    inside = {link for link in words.links if link.startswith("#")}
    assert {link.removeprefix("#") for link in inside} <= set(words.ids)
    asked = json.loads((root / "results/verdicts.json").read_text())["counts"]["tests"]["asked"]
    chapters = text[text.index('<section id="chapter-3"') :]
    assert chapters.count("<li>") == asked
    assert "Beside it: embedded, far ground" in words.text
    assert "script" not in words.tags


def test_without_any_results_there_is_no_page_over_all_suites(tmp_path):
    assert write_overall(tmp_path) is None
    assert not (tmp_path / "reports").exists()


def test_claims_of_one_test_stand_in_one_card_with_the_reason_where_it_fails(built):
    text = make(built).read_text()
    start = text.index('id="ch3-table31-mnist-lenet-rho-adv-fgsm"')
    card = text[text.rindex('<div class="claim ', 0, start) : text.index("</details>", start)]
    assert 'id="ch3-table31-cifar10-lenet-rho-adv-fgsm"' in card
    assert "reproduced" in card
    assert "5,000 MNIST digits, for the thesis" in card
    assert "for this claim it carries over" in card


# Across networks

PAIRS = ("vgg-f-to-caffenet", "caffenet-to-vgg-f", "vgg-f-to-googlenet")


@pytest.fixture
def across(tmp_path):
    """The page of two networks named for VGG-F and CaffeNet, with a transfer between them."""
    results = tmp_path / "results" / "toy"
    found = {"fool[a][b]": entry(0.72, 0.71, 0.73), "fool[b][a]": entry(0.2, 0.19, 0.21)}
    content = {"section": "Table 4.2", "numbers": found, "curves": {}, "notes": ["Left out: c."]}
    write_stage(results, "universal_transfer", "all", {"uap_transfer": content}, dataset="imagenet")
    networks = {name: {"dataset": "imagenet", "model": "x"} for name in "ab"}
    counterparts = {"default": "a", "VGG-F": "a", "CaffeNet": "b"}
    page = write_report(
        "toy",
        results.parent,
        tmp_path / "reports",
        networks=networks,
        counterparts=counterparts,
        provenance={},
    )
    verdicts = json.loads((results / "claims.json").read_text())["claims"]
    return page.read_text(), {
        verdict["id"].removeprefix("ch4-table42-"): verdict for verdict in verdicts
    }


def test_a_claim_on_two_networks_is_judged_by_the_number_of_their_pair(across):
    _, verdicts = across
    outcomes = [verdicts[name] for name in PAIRS]
    assert [outcome["verdict"] for outcome in outcomes] == [
        "reproduced",
        "contradicted",
        "not tested here",
    ]
    assert [outcome["kind"] for outcome in outcomes] == ["value", "value", ""]
    first = outcomes[0]["decided_by"][0]
    assert (first["network"], first["tests"][0]["number"]) == ("all", "fool[a][b]")


def test_results_across_networks_stand_beside_the_thesis(across):
    text, _ = across
    assert "From, to" in text
    assert "71.8%" in text
    assert "72.0%" in text
    assert "Left out: c." in text
    assert "python -m stages.universal_transfer suite=toy 'experiments=[uap_transfer]'" in unescape(
        text
    )
    assert "dvc repro --force --single-item universal_transfer\n" in text


def test_a_transfer_that_has_not_run_is_named_once(tmp_path):
    claims = load_claims()
    tested = next(
        claim for claim in claims.claims if claim.experiment == "attack-l2" and claim.tests
    )
    changed = tuple(
        replace(claim, tests=tested.tests) if claim.experiment == "sc-transfer" else claim
        for claim in claims.claims
    )
    page = write_report(
        "toy",
        tmp_path,
        tmp_path / "reports",
        networks=NETWORKS,
        counterparts=COUNTERPARTS,
        provenance={},
        claims=replace(claims, claims=changed),
    )
    assert page.read_text().count("<li>no results of stage curvature_transfer for all</li>") == 1
