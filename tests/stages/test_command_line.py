"""Every stage through its real command line; bad input ends in one line and exit code 2."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import save_file

from pipeline.plots import dominant_share
from robustness_geometry.checks import refuse
from stages.experiments import ACROSS, STAGES, Experiment, experiments_of
from stages.runner import main

SMALL = [
    "suite=smoke",
    "budget=smoke",
    "executor.threads=1",
    "executor.workers=1",
    "executor.progress=false",
    "tracking=none",
]


@pytest.fixture
def invoke(tmp_path, monkeypatch, capsys):
    """Run a stage in this process; returns exit code, stderr and the folder of results."""

    def run(stage, *arguments, output=False):
        out = tmp_path / f"out-{stage}"
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "stages",
                *SMALL,
                f"executor.work={tmp_path / 'work'}",
                f"hydra.run.dir={out}",
                *arguments,
            ],
        )
        GlobalHydra.instance().clear()
        code = 0
        try:
            main(stage)
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return (code, said.err, out, said.out) if output else (code, said.err, out)

    return run


@pytest.fixture
def photos(tmp_path):
    """Twelve made-up images of 3 x 32 x 32 in two folders."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def shared_work(tmp_path_factory):
    """A store of chunks for all smoke runs in all processes: what is shared is computed once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared-work"


MECHANICAL = ("dataclasses.py", "keys.py", "copy.py")
"""Files whose functions read all fields of settings, whether they are used or not."""


def recorded(settings, read):
    """The same settings, which note in ``read`` which of their fields an experiment reads."""
    kind = type(settings)
    names = {field.name for field in dataclasses.fields(settings)}

    def noting(self, name):
        if name in names and not _mechanical(sys._getframe(1)):
            read.add(name)
        return object.__getattribute__(self, name)

    watched = type(kind.__name__, (kind,), {"__getattribute__": noting})
    watched.__module__, watched.__qualname__ = kind.__module__, kind.__qualname__
    copy = object.__new__(watched)
    copy.__dict__.update(vars(settings))
    return copy


def _mechanical(frame):
    """Whether a field is read to be copied or checked, not to be used."""
    if frame.f_code.co_filename.endswith(MECHANICAL):
        return True
    for _ in range(5):
        if frame is None:
            return False
        if frame.f_code.co_name in ("__post_init__", "check"):
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def unread(monkeypatch):
    """Experiment -> the settings that it has not read, for each that ran in this process."""
    left = {}
    measured = Experiment._findings

    def measure(self, network, data, executor):
        read = set()
        watched = dataclasses.replace(self, settings=recorded(self.settings, read))
        findings = measured(watched, network, data, executor)
        left[self.name] = {field.name for field in dataclasses.fields(self.settings)} - read
        return findings

    monkeypatch.setattr(Experiment, "_findings", measure)
    return left


def test_a_field_that_is_only_checked_or_copied_is_unread():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        used: int = 1
        checked: int = 2
        copied: int = 3
        derived: int = 4

        def __post_init__(self):
            assert self.checked == 2
            assert self.total == 7

        @property
        def total(self):
            return self.copied + self.derived

    read = set()
    settings = dataclasses.replace(recorded(Settings(), read), used=5)
    assert dataclasses.asdict(settings) == {"used": 5, "checked": 2, "copied": 3, "derived": 4}
    assert read == set()
    assert settings.used == 5
    assert read == {"used"}
    assert settings.total == 7
    assert read == {"used", "copied", "derived"}


@pytest.mark.smoke
@pytest.mark.parametrize("stage", [stage for stage in (*STAGES, *ACROSS) if experiments_of(stage)])
def test_a_stage_runs_uses_its_settings_and_writes_its_five_outputs(
    invoke, shared_work, unread, stage
):
    chosen = () if stage in ACROSS else ("network=mnist5k_lenet",)
    code, errors, out, said = invoke(stage, *chosen, f"executor.work={shared_work}", output=True)
    assert code == 0, errors
    assert said.splitlines()[-1] == f"{stage}: the results are in {out}"
    assert said.splitlines()[0].split() == ["value", "95%", "interval", "n"]
    assert 3 <= len(said.splitlines()) <= 14
    assert {p.name for p in out.iterdir()} >= {
        "metrics.json",
        "timings.json",
        "tables",
        "figures",
        "tensors",
    }
    figures = list((out / "figures").glob("*.png"))
    assert figures
    assert [path.name for path in figures if dominant_share(path) > 0.99] == []
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["network"] == ("all" if stage in ACROSS else "mnist5k_lenet")
    for name, experiment in metrics["experiments"].items():
        assert experiment["numbers"], name
        for number, estimate in experiment["numbers"].items():
            assert set(estimate) == {"value", "low", "high", "n", "std", "seeds"}, number
    unused = [f"{name}.{field}" for name, fields in unread.items() for field in sorted(fields)]
    assert not unused, " ".join(unused)


LENET = "network=mnist5k_lenet"
BAD = [
    (
        "attack",
        ["model=lenet5000"],
        ["model cannot be 'lenet5000'", "mean lenet5?", "fc500_150_10"],
    ),
    ("attack", ["dataset=mnist9k"], ["dataset cannot be 'mnist9k'", "did you mean mnist5k?"]),
    ("attack", ["attack=deepfoul"], ["attack cannot be 'deepfoul'", "did you mean deepfool?"]),
    ("attack", ["attack.nrom=inf"], ["attack.nrom is no key of attack; did you mean attack.norm?"]),
    ("attack", ["attack.stepz=3"], ["attack.stepz", "did you mean attack.steps? Keys: candidates"]),
    ("attack", ["+attack.stepz=3"], ["attack.stepz", "did you mean attack.steps?"]),
    ("attack", ["~attack.stepz"], ["attack.stepz", "did you mean attack.steps?"]),
    ("finetune", ["attack.stepz=3"], ["attack.stepz is no key of attack", "attack.steps?"]),
    ("finetune", ["finetune.attack.steps=3"], ["finetune.attack is ${attack}: write attack.steps"]),
    ("finetune", ["finetune.epoch=3"], ["finetune.epoch", "did you mean finetune.epochs?"]),
    ("attack", ["modle=lenet"], ["modle is no key; did you mean model? Keys: attack, "]),
    ("attack", ["+x=1"], ["x is no key. Keys: attack, "]),
    ("attack", ["~x"], ["x is no key. Keys: attack, "]),
    ("attack", ["sedes=[0]"], ["sedes is no key; did you mean seeds?"]),
    ("attack", ["+suite.name=x"], ["suite.name is set already: write suite.name=x without the +"]),
    ("attack", ["lenet"], ["'lenet' is no setting: write key=value"]),
    ("attack", ["dataset.root=/a=b"], ["dataset.root=/a=b cannot be read", 'root="/a=b"\'']),
    (
        "attack",
        ["model=custom", "model.checkpoint=/w/epoch=3-step=10.ckpt"],
        ["cannot be read", "'model.checkpoint=\"/w/epoch=3-step=10.ckpt\"'"],
    ),
    ("attack", ["model.target=a.b(c=1)"], ["cannot be read", "'model.target=\"a.b(c=1)\"'"]),
    ("attack", ["output=a,b"], ["output has several values", "write output=[a,b]", "-m"]),
    ("attack", ["hydra.run.dri=x"], ["hydra.run.dri is no key", "did you mean hydra.run.dir?"]),
    ("attack", ["attack@cure.attack=fgmm"], ["attack@cure.attack cannot be 'fgmm'", "mean fgsm?"]),
    ("attack", ["atack@cure.attack=fgsm"], ["cannot be 'atack'; did you mean attack?"]),
    ("universal_transfer", ["model=lenet"], ["model cannot be chosen for this stage", "suite"]),
    (
        "attack",
        ["networks.mnist5k_lent.training.epochs=3"],
        ["networks.mnist5k_lent is no key of networks; did you mean networks.mnist5k_lenet?"],
    ),
    ("attack", ["attack.steps=many"], ["attack.steps must be a whole number; got 'many'"]),
    ("attack", ["attack.norm=0.5"], ["attack.norm must be", "got 0.5"]),
    ("attack", ["attack=fgsm", "attack.eps=0"], ["attack.eps must be", "got 0"]),
    ("attack", ["attack=pgd", "attack.eps=-8/255"], ["attack.eps must be", "got '-8/255'"]),
    ("attack", ["attack=universal"], ["attack must be", "single images", "universal_perturbation"]),
    ("attack", ["attack=universal", "attack.radius=1"], ["attack must be", "single images"]),
    ("universal", ["attack=fgsm"], ["attack must be an attack on a whole set", "got 'fgsm'"]),
    ("curvature", ["attack=universal"], ["attack must be an attack on single images"]),
    ("attack", ["network=lenet"], ["network must be one of mnist5k_lenet", "got 'lenet'"]),
    ("attack", ["network=[mnist5k_lenet]"], ["network must be one name", "mnist5k_lenet"]),
    ("attack", [LENET, "model=nin"], ["model is not used", "networks.mnist5k_lenet.model"]),
    ("universal", ["attack.radius=-1"], ["attack.radius must be", "got -1"]),
    ("universal", ["attack.fooling_rate=2"], ["attack.fooling_rate must be", "got 2"]),
    ("universal", [LENET, "attack.passes=0"], ["attack.passes must be", "got 0"]),
    (
        "attack",
        ["experiments=[attack_l7]"],
        ["experiments cannot be 'attack_l7'", "mean attack_l2?"],
    ),
    (
        "attack",
        ["experiments=[uap_main]"],
        ["experiments cannot be 'uap_main'", "stages.universal"],
    ),
    (
        "attack",
        ["experiment=table_4_1"],
        ["experiments cannot be 'uap_main'", "run python -m stages.universal for it"],
    ),
    ("cure", ["attack.eps=0.2"], ["attack.eps is not used", "write cure.eps instead"]),
    ("semirandom", ["attack.norm=inf"], ["attack.norm is not used", "4 experiments", "themselves"]),
    ("curvature", ["attack.clip=null"], ["attack.clip is not used", "set it themselves"]),
    ("topology", ["attack.norm=inf"], ["attack.norm is not used", "path_connectivity"]),
    ("attack", ["~model"], ["model cannot be left out: write model=name"]),
    ("train", ["dataset=image_folder", "dataset.root=/nowhere"], ["root", "/nowhere"]),
    ("train", ["training.learning_rate=-1"], ["learning_rate must be", "got -1"]),
    ("train", ["training=pretrained"], ["training must be", "got 'pretrained'", "checkpoint"]),
    ("attack", ["model=caffenet", "dataset=mnist5k"], ["caffenet"]),
    (
        "attack",
        ["model=custom", "model.target=nowhere.Net", "model.checkpoint=x.safetensors"],
        ["nowhere"],
    ),
    (
        "attack",
        ["model=custom", "model.target=torch.nn.Flatten", "model.checkpoint=absent.safetensors"],
        ["checkpoint", "absent.safetensors"],
    ),
    ("finetune", ["finetune.epochs=0"], ["finetune.epochs must be", "got 0"]),
    (
        "detect",
        ["suite.networks.detect=[lenet]"],
        ["suite.networks.detect must be one of mnist5k_lenet", "got 'lenet'"],
    ),
    (
        "cure",
        ["suite.networks.cure_cifar10=[lenet]"],
        ["suite.networks.cure_cifar10 must be one of mnist5k_lenet", "got 'lenet'"],
    ),
    ("cure", [LENET, "cure.h=0"], ["cure: cure.h must be", "got 0"]),
    ("curvature", [LENET, "curvature.h=-1"], ["curvature: curvature.h must be", "got -1"]),
    ("topology", [LENET, "topology.pairs=0"], ["topology: topology.pairs must be", "got 0"]),
    ("detect", [LENET, "detect.directions=0"], ["detect: detect.directions must be", "got 0"]),
    ("attack", ["output=/etc/passwd"], ["output must be a folder that can be written to"]),
    ("attack", ["output=/etc/passwd/x"], ["output must be a folder that can be written to"]),
    ("attack", ["cure.eps=1"], ["cure.eps is not used by any experiment of the stage attack"]),
    (
        "attack",
        ["experiments=[attack_closed_forms]", "attack.norm=inf"],
        ["attack.norm is not used by attack_closed_forms, only by attack_l2, attack_linf"],
    ),
    (
        "attack",
        ["experiments=[attack_l2]", "settings.attack_linf.samples=5"],
        ["settings.attack_linf.samples is not used: attack_linf is not among the experiments"],
    ),
    (
        "attack",
        ["settings.cure_svhn.steps=5"],
        ["settings.cure_svhn.steps is not used by the stage attack", "of the stage cure"],
    ),
    ("curvature", ["universal.samples=5"], ["universal.samples is not used by any experiment"]),
]


@pytest.mark.parametrize(
    ("stage", "arguments", "words"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else v
)
def test_bad_input_is_one_line_and_exit_code_2(invoke, tmp_path, stage, arguments, words):
    code, errors, out = invoke(stage, *arguments)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    for word in words:
        assert word in errors
    assert not (out / "metrics.json").exists()
    assert not list((tmp_path / "work").rglob("*.bin"))


def test_a_run_folder_below_a_file_is_one_line(invoke, tmp_path):
    (tmp_path / "file").write_text("kept")
    code, errors, _ = invoke("attack", f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "hydra.run.dir" in errors


def test_a_run_folder_of_another_program_is_refused(invoke, tmp_path):
    path = tmp_path / "theirs" / ".hydra" / "hydra.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    code, errors, _ = invoke("attack", f"hydra.run.dir={tmp_path / 'theirs'}")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "hydra.run.dir must be a folder without a .hydra/hydra.yaml of another" in errors
    assert [each.name for each in path.parent.iterdir()] == ["hydra.yaml"]
    assert path.read_text() == "theirs"


def test_an_error_in_a_run_is_one_line(invoke, monkeypatch):
    """Such as a tracking server that does not answer."""

    def absent(*_, **__):
        refuse("tracking.uri", "http://127.0.0.1:9", "the address of a server that answers")

    monkeypatch.setattr("pipeline.tracking.stage_run", absent)
    code, errors, out = invoke("attack", LENET)
    assert code == 2
    assert errors == (
        "attack: tracking.uri must be the address of a server that answers; "
        "got 'http://127.0.0.1:9'\n"
    )
    assert not (out / "metrics.json").exists()


def test_a_run_that_is_refused_leaves_the_output_folder_alone(invoke, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("{}")
    code, errors, _ = invoke("attack", LENET, f"output={tmp_path / 'mine'}")
    assert code == 2
    assert "output must be a folder without a metrics.json of another program" in errors
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["metrics.json"]


def test_bad_checkpoints_are_refused(invoke, tmp_path):
    good = tmp_path / "weights.safetensors"
    save_file(torch.nn.Linear(3, 2).state_dict(), good)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-8])
    pickled = tmp_path / "pickled.pt"
    torch.save(torch.nn.Linear(3, 2), pickled)
    for path in (good, truncated, pickled):
        code, errors, _ = invoke(
            "attack",
            "model=custom",
            "model.target=robustness_geometry.models.lenet",
            "model.args={channels: 1, size: [28, 28], classes: 10, mean: [0.0], std: [1.0]}",
            f"model.checkpoint={path}",
        )
        assert code == 2
        assert str(path) in errors
        assert len(errors.strip().splitlines()) == 1


def test_images_outside_the_unit_range_are_refused(invoke, monkeypatch):
    from robustness_geometry.datasets import mnist5k as original

    @functools.wraps(original)
    def bright(**options):
        data = original(**options)
        data.test.images.mul_(255)
        return data

    monkeypatch.setattr("robustness_geometry.datasets.mnist5k", bright)
    code, errors, _ = invoke("train", "network=mnist5k_lenet")
    assert code == 2
    assert "[0, 1]" in errors


@pytest.mark.smoke
def test_a_network_that_is_not_ours(invoke, photos, tmp_path):
    """Tables 3.1, 3.2 and the DCT bands for a torchvision network on an image folder."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=2).state_dict(), tmp_path / "weights.safetensors")
    code, errors, out = invoke(
        "attack",
        "model=custom",
        "model.target=torchvision.models.squeezenet1_1",
        "model.args={num_classes: 2}",
        f"model.checkpoint={tmp_path / 'weights.safetensors'}",
        "dataset=image_folder",
        f"dataset.root={photos}",
        "experiments=[attack_l2,attack_linf,dct_bands]",
    )
    assert code == 0, errors
    numbers = json.loads((out / "metrics.json").read_text())["experiments"]
    assert numbers["attack_l2"]["numbers"]["rho_df"]["n"] > 0
    assert numbers["attack_linf"]["numbers"]["rho_inf_df"]["value"] > 0
    assert "beta_random" in numbers["dct_bands"]["numbers"]


@pytest.mark.smoke
def test_a_sweep_leaves_finished_runs_under_one_parent(root, tmp_path):
    """The command line of a multirun, in a process of its own, logged to a database of its own."""
    command = [
        sys.executable,
        "-m",
        "stages.attack",
        "-m",
        "suite=smoke",
        "budget=smoke",
        "seeds=[0]",
        "model=fc500_150_10",
        "dataset=mnist5k",
        "dataset.train_limit=300",
        "dataset.test_limit=20",
        "training.epochs=1",
        "settings.attack_closed_forms.points=5,6",
        "experiments=[attack_closed_forms]",
        "executor.progress=false",
        f"executor.work={tmp_path / 'work'}",
        f"tracking.uri=sqlite:///{tmp_path / 'runs.db'}",
        "tracking.system_metrics=false",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    import sqlite3

    with sqlite3.connect(tmp_path / "runs.db") as database:
        runs = database.execute("select run_uuid, status from runs").fetchall()
        parents = database.execute(
            "select value from tags where key = 'mlflow.parentRunId'"
        ).fetchall()
    assert [status for _, status in runs] == ["FINISHED"] * 3
    assert len(parents) == 2
    assert len(set(parents)) == 1
