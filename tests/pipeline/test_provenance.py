"""Where results come from: commands, commits, data and times; and what has changed since."""

import hashlib
import json
import re
import sys
from html import unescape
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipeline import crate
from pipeline.findings import Findings
from pipeline.ledger import RUN_TIME
from pipeline.report import write_report
from pipeline.report.embedding import data_uri
from pipeline.report.freshness import Freshness
from pipeline.statistics import exactly
from robustness_geometry.types import Dataset, Split
from stages.origin import begun, ended
from stages.results import write_results

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = {
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T03:05:05+00:00",
    "commit": COMMIT,
    "changed": True,
    "data": {"digits": {"train": "aa11", "test": "bb22"}},
    "mlflow_run": "feed",
}
EXPERIMENTS = {"attack": "attack_l2", "topology": "path_connectivity"}
ONE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "std": None, "seeds": 1}


def picture(pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def recorded(root, path):
    return hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def root(tmp_path):
    """A repository with results of two stages, and a dvc.lock that records them."""
    for name in ("both.py", "attack.py", "topology.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    params = {"seeds": [0], "attack": {"rate": 1e-05}, "topology": {"steps": 3}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**params, "suite": {"name": "toy"}}))
    stages = {}
    for stage, experiment in EXPERIMENTS.items():
        folder = f"results/toy/{stage}/net"
        for part in ("figures", "tables"):
            (tmp_path / folder / part).mkdir(parents=True)
        entry = {"section": "", "numbers": {"x": ONE}, "curves": {}, "notes": []}
        content = {"network": "net", "dataset": "digits", "seeds": [0]}
        content["experiments"] = {experiment: entry}
        (tmp_path / folder / "metrics.json").write_text(json.dumps(content))
        times = {experiment: {"numbers": {RUN_TIME: {**ONE, "value": 75.0}}}}
        times = {"run": RUN, "experiments": times}
        (tmp_path / folder / "timings.json").write_text(json.dumps(times))
        grey = np.full((2, 2), 9, dtype=np.uint8)
        (tmp_path / folder / f"figures/{experiment}_it.png").write_bytes(picture(grey))
        (tmp_path / folder / f"tables/{experiment}_it.csv").write_text("a\n1\n")
        deps, outs = ("both.py", f"{stage}.py"), ("metrics.json", "timings.json")
        stages[f"{stage}@net"] = {
            "deps": [{"path": path, "md5": recorded(tmp_path, path)} for path in deps],
            "params": {"params.yaml": {"seeds": [0], stage: params[stage]}},
            "outs": [
                {"path": f"{folder}/{name}", "md5": recorded(tmp_path, f"{folder}/{name}")}
                for name in outs
            ],
        }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return tmp_path


def page(root, **options):
    path = write_report(
        "toy",
        root / "results",
        root / "reports",
        networks={"net": {"dataset": "digits", "model": "lenet"}},
        counterparts={"default": "net"},
        provenance={},
        **options,
    )
    return path.read_text()


def article(text, experiment):
    start = text.index(f'<article id="{experiment}">')
    return text[start : text.index("</article>", start)]


def words(text):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


def append(root, path):
    (root / path).write_text((root / path).read_text() + "# more\n")


# Stale


@pytest.mark.parametrize(
    ("touched", "stale"),
    [
        ("attack.py", {"attack": ("attack.py",)}),
        ("topology.py", {"topology": ("topology.py",)}),
        ("both.py", {"attack": ("both.py",), "topology": ("both.py",)}),
    ],
)
def test_a_changed_file_makes_stale_what_depends_on_it_and_nothing_else(root, touched, stale):
    folders = {stage: root / "results/toy" / stage / "net" for stage in EXPERIMENTS}
    assert {stage: Freshness(root).changed(each) for stage, each in folders.items()} == {
        "attack": (),
        "topology": (),
    }
    append(root, touched)
    found = {stage: Freshness(root).changed(each) for stage, each in folders.items()}
    assert found == {"attack": (), "topology": (), **stale}


def test_a_changed_setting_makes_its_stage_stale(root):
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["topology"]["steps"] = 4
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    found = Freshness(root)
    assert found.changed(root / "results/toy/topology/net") == ("topology",)
    assert found.changed(root / "results/toy/attack/net") == ()


def test_of_results_that_dvc_does_not_record_nothing_is_said(root):
    timings = root / "results/toy/attack/net/timings.json"
    timings.write_text(timings.read_text() + "\n")
    append(root, "both.py")
    assert Freshness(root).changed(timings.parent) is None
    timings.unlink()  # as in a fresh checkout
    assert Freshness(root).changed(timings.parent) == ("both.py",)


def test_folders_are_hashed_as_dvc_hashes_them(tmp_path):
    hash_info = pytest.importorskip("dvc_data.hashfile.hash_info").HashInfo
    tree = pytest.importorskip("dvc_data.hashfile.tree").Tree()
    files = {"b.txt": "b", "a/c.txt": "c", "a-b/d.txt": "d", "ä.txt": "e"}
    for name, text in files.items():
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(text)
        tree.add(tuple(name.split("/")), None, hash_info("md5", recorded(tmp_path / "code", name)))
    tree.digest()
    (tmp_path / "code" / "left.pyc").write_text("left out")
    (tmp_path / ".dvcignore").write_text("*.pyc\n")
    assert Freshness(tmp_path)._hash("code") == tree.hash_info.value


# The page


def test_every_measured_experiment_says_where_it_comes_from(root):
    text = page(root)
    for stage, name in (("attack", "attack-l2"), ("topology", "path-connectivity")):
        section = article(text, name)
        assert section.count('<details class="origin">') == 1
        said = words(section[section.index('<details class="origin">') :])
        for wanted in (
            f"{stage}@net : nothing that it depends on has changed since.",
            "Commit: 0123456789ab, with changes that were not committed.",
            "digits (train aa11, test bb22)",
            "Time: 1 min 15 s, in a run begun 2026-01-02 03:04:05 UTC.",
            "MLflow run: feed",
            f"dvc repro --force --single-item {stage}@net",
            f"python -m stages.{stage} suite=toy network=net",
        ):
            assert wanted in said
        assert "x 0.50 [0.40, 0.60]" in words(section)
        assert RUN_TIME not in section


def test_only_figures_of_stale_stages_are_marked(root):
    append(root, "attack.py")
    text = page(root)
    captions = {
        name: re.findall(r"<figcaption>.*?</figcaption>", article(text, name))
        for name in ("attack-l2", "path-connectivity")
    }
    assert all("stale" in caption for caption in captions["attack-l2"])
    assert not any("stale" in caption for caption in captions["path-connectivity"])
    assert "stale attack.py changed since." in words(article(text, "attack-l2"))


def test_links_lead_somewhere_and_headings_leave_out_no_level(root):
    text = page(root)
    links, ids = re.findall(r'href="([^"]+)"', text), set(re.findall(r' id="([^"]+)"', text))
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    files = [link for link in links if not link.startswith("#")]
    assert len(files) == 8
    assert all((root / "reports/toy" / link).exists() for link in files)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert not re.search(r"<th(?![^>]*scope)[ >]", text)
    assert not re.search(r'<img(?![^>]*alt="[^"]+")', text)


def test_while_a_run_is_under_way_the_page_names_what_is_still_to_come(root):
    assert "Still to come" not in page(root)
    text = words(page(root, coming={"cure": ["other"], "curvature": ["net"]}))
    assert "Written while dvc repro runs. Still to come:" in text
    assert "Still to come: curvature@net" in text
    assert "cure@net" not in text  # the suite leaves it out


# Figures


def test_a_drawing_becomes_smaller_and_looks_the_same():
    edges = (np.add.outer(np.arange(300), np.arange(400)) // 7 % 5 * 60).astype(np.uint8)
    pixels = np.stack([edges, edges[::-1], 255 - edges], axis=-1)
    noisy = pixels ^ np.random.default_rng(0).integers(0, 4, pixels.shape, dtype=np.uint8)
    content = picture(noisy)
    uri = data_uri(content)
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < 0.75 * len(content)


def test_what_cannot_be_made_smaller_stays():
    small = picture(np.zeros((1, 1), dtype=np.uint8))
    assert data_uri(small).startswith("data:image/png;base64,")


# What runs note


def test_a_run_notes_time_commit_and_data_beside_its_results(tmp_path):
    split = Split(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    empty = split.first(0)
    data = Dataset("toy", empty, split, ("a", "b"), (0.0,), (1.0,), "", ())
    origin = ended(begun(), {"net": data, "other": data}, "feed")
    assert set(origin) == set(RUN)
    assert list(origin["data"]) == ["toy"]
    assert list(origin["data"]["toy"]) == ["test"]
    assert origin["started"] <= origin["ended"]
    findings = {"it": Findings(timings={RUN_TIME: exactly(2.0)})}
    write_results(tmp_path / "net", {"network": "net"}, findings, {"it": "1"}, origin=origin)
    times = json.loads((tmp_path / "net" / "timings.json").read_text())
    assert times["run"] == origin
    assert times["experiments"]["it"]["numbers"][RUN_TIME]["value"] == 2.0
    assert "run" not in json.loads((tmp_path / "net" / "metrics.json").read_text())


# RO-Crate


def test_without_rocrate_one_line_says_how_to_get_it(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    monkeypatch.setattr(crate, "root", lambda: root)
    assert crate.main([]) == 2
    assert "pip install robustness-geometry[crate]" in capsys.readouterr().err


def test_a_suite_without_results_is_refused_by_its_name(root, monkeypatch, capsys):
    monkeypatch.setattr(crate, "root", lambda: root)
    assert crate.main(["--suite", "none"]) == 2
    assert "suite must be one with results" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_crate_holds_the_workflow_its_runs_and_their_results(root, monkeypatch, tmp_path):
    pytest.importorskip("rocrate")
    here = crate.root()
    for name in ("CITATION.cff", "LICENSE", "dvc.yaml"):
        (root / name).write_text((here / name).read_text())
    monkeypatch.setattr(crate, "root", lambda: root)
    assert crate.main(["--output", str(tmp_path / "crate")]) == 0
    graph = json.loads((tmp_path / "crate" / "ro-crate-metadata.json").read_text())["@graph"]
    found = {entity["@id"]: entity for entity in graph}
    assert found["./"]["mainEntity"] == {"@id": "dvc.yaml"}
    assert found["#thesis"]["name"].startswith("Geometry of adversarial robustness")
    run = found["#run-attack@net"]
    assert run["startTime"] == RUN["started"]
    assert run["endTime"] == RUN["ended"]
    assert run["result"] == {"@id": "results/toy/attack/net/"}
    assert COMMIT in run["description"]
    kept = tmp_path / "crate" / "results/toy/attack/net"
    assert (kept / "figures/attack_l2_it.png").read_bytes()
    assert (kept / "metrics.json").read_bytes()
