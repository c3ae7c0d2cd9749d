import errno
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from pipeline import progress as progress_module
from pipeline.executor import Executor
from robustness_geometry import randomness
from robustness_geometry.checks import InputError
from robustness_geometry.types import Perturbed

CALLS: list[int] = []
"""The sizes of the batches that the functions below were called with."""


@pytest.fixture(autouse=True)
def _process():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    CALLS.clear()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def make(tmp_path):
    def make(**options: object) -> Executor:
        settings = {"accelerator": "cpu", "threads": 1, "chunk": 4, "progress": False}
        return Executor(**{**settings, "work": tmp_path / "work", **options})

    return make


@pytest.fixture
def images():
    return torch.rand(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def scale(images, factor=2.0):
    CALLS.append(len(images))
    return factor * images


def perturb(model, images, labels, *, generator=None):
    CALLS.append(len(images))
    drawn = randomness.normal(images, generator)
    ones = torch.ones(len(images), dtype=torch.long)
    return Perturbed(drawn + model(images), labels, labels + 1, ones > 0, ones)


def containers(images):
    return {
        "pair": (images, images),
        "list": [images.sum((1, 2, 3))],
        "none": None,
        "first": images[:, 0],
    }


def fail_at_the_third(images):
    CALLS.append(len(images))
    if len(CALLS) == 3:
        raise RuntimeError("the machine stops")
    return images + 1


def hungry(images, limit):
    CALLS.append(len(images))
    if len(images) > limit:
        raise torch.OutOfMemoryError("no room")
    return images + 1


def hungry_random(images, limit, *, generator=None):
    return hungry(images, limit) + randomness.normal(images, generator)


def total(images):
    return images.sum()


def number(images):
    return 3.0


def train(epochs, device="cpu"):
    CALLS.append(epochs)
    return {"weight": torch.arange(epochs, device=device), "loss": torch.tensor(0.5)}


def chunk_files(executor, pattern="*"):
    return sorted(executor._work.glob(f"{pattern}/*/*.bin"))


# What a map returns


def test_map_joins_what_the_function_returns(make, images):
    labels = torch.arange(10)
    mapped = make().scope("e").map(functools.partial(perturb, nn.Identity().eval()), images, labels)
    assert CALLS == [4, 4, 2]
    assert isinstance(mapped.value, Perturbed)
    assert torch.equal(mapped.value.labels, labels)
    assert torch.equal(mapped.value.adversarial_labels, labels + 1)
    assert mapped.value.success.dtype == torch.bool
    assert mapped.value.perturbations.shape == images.shape


def test_tensors_come_back_exactly_in_every_container(make, images):
    value = make().map(containers, images).value
    assert torch.equal(value["pair"][0], images)
    assert torch.equal(value["pair"][1], images)
    assert torch.equal(value["list"][0], images.sum((1, 2, 3)))
    assert value["none"] is None


def containers_dtypes(images):
    types = (torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
    return [images.to(kind) for kind in types]


def test_every_type_of_number_survives_the_disk(make, images):
    executor = make()
    first = executor.map(containers_dtypes, images).value
    again = make().map(containers_dtypes, images).value
    for old, new, kind in zip(first, again, containers_dtypes(images), strict=True):
        assert old.dtype == new.dtype == kind.dtype
        assert torch.equal(old, new)
        assert torch.equal(new, kind)


def test_no_images_make_an_empty_result_of_the_right_shape(make, images):
    mapped = make().map(
        functools.partial(perturb, nn.Identity().eval()), images[:0], torch.arange(0)
    )
    assert mapped.value.perturbations.shape == (0, 1, 2, 2)
    assert mapped.seconds.shape == (0,)


def test_values_carry_no_graph(make, images):
    layer = nn.Conv2d(1, 1, 1).eval()
    value = make().map(functools.partial(perturb, layer), images, torch.arange(10)).value
    assert not value.perturbations.requires_grad


def test_seconds_are_those_of_the_first_computation(make, images, monkeypatch):
    clock = iter([0.0, 8.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    first = make().map(scale, images).seconds
    assert first.tolist() == [2.0] * 4 + [0.5] * 4 + [0.5] * 2
    assert torch.equal(make().map(scale, images).seconds, first)


# Taking up finished work


def test_a_second_run_computes_nothing(make, images):
    first = make().scope("e").map(scale, images)
    CALLS.clear()
    second = make().scope("e").map(scale, images)
    assert CALLS == []
    assert torch.equal(first.value, second.value)


def test_after_a_crash_only_the_missing_chunks_are_computed(make, images):
    executor = make().scope("e")
    with pytest.raises(RuntimeError, match="the machine stops"):
        executor.map(fail_at_the_third, images)
    assert len(chunk_files(executor)) == 2
    assert not list(executor._work.rglob("*.part"))
    value = make().scope("e").map(fail_at_the_third, images).value
    assert CALLS == [4, 4, 2, 2]
    assert torch.equal(value, images + 1)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "header"])
def test_a_damaged_chunk_is_computed_again_with_one_line(make, images, caplog, harm):
    executor = make().scope("e")
    first = executor.map(scale, images).value
    file = chunk_files(executor)[1]
    content = bytearray(file.read_bytes())
    content[-1 if harm == "flip" else 0] ^= 1
    file.write_bytes({"cut": content[:-8], "empty": b""}.get(harm, content))
    CALLS.clear()
    with caplog.at_level(logging.WARNING):
        again = make().scope("e").map(scale, images).value
    assert CALLS == [4]
    assert torch.equal(first, again)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is damaged: computing it again"
    ]


def test_a_write_that_fails_leaves_nothing(make, images, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("disk full")

    executor = make()
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        executor.map(scale, images)
    assert not [path for path in executor._work.rglob("*") if path.is_file()]


def layer(value):
    convolution = nn.Conv2d(1, 1, 1, bias=False).eval()
    nn.init.constant_(convolution.weight, value)
    return convolution


CHANGES = {
    "experiment": lambda e, x: e.scope("other").map(functools.partial(perturb, layer(1.0)), *x),
    "seed": lambda e, x: e.scope("e", seed=1).map(functools.partial(perturb, layer(1.0)), *x),
    "weights": lambda e, x: e.scope("e").map(functools.partial(perturb, layer(2.0)), *x),
    "data": lambda e, x: e.scope("e").map(functools.partial(perturb, layer(1.0)), x[0] + 1, x[1]),
    "labels": lambda e, x: e.scope("e").map(functools.partial(perturb, layer(1.0)), x[0], x[1] + 1),
    "chunk": lambda e, x: e.scope("e").map(functools.partial(perturb, layer(1.0)), *x, chunk=5),
    "randomness": lambda e, x: e.scope("e").map(
        functools.partial(perturb, layer(1.0)), *x, randomness=True
    ),
    "function": lambda e, x: e.scope("e").map(
        functools.partial(perturb, layer(1.0), generator=None), *x
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_computes_afresh(make, images, change):
    labels = torch.arange(10)
    make().scope("e").map(functools.partial(perturb, layer(1.0)), images, labels)
    CALLS.clear()
    CHANGES[change](make(), (images, labels))
    assert sum(CALLS) == 10


MACHINES = [{"threads": 2}, {"precision": "64-true"}, {"tf32": True}, {"deterministic": False}]


@pytest.mark.parametrize("option", MACHINES)
def test_a_change_of_the_machine_computes_afresh(make, images, option):
    make().map(scale, images)
    CALLS.clear()
    make(**option).map(scale, images)
    assert sum(CALLS) == 10


def test_an_edit_of_the_source_computes_afresh(make, images, tmp_path, monkeypatch):
    package = tmp_path / "toylab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text("from toylab.tool import by\ndef run(x):\n    return by(x)\n")
    (package / "tool.py").write_text("def by(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    from toylab import work

    first = make()
    first.map(work.run, images)
    make().map(work.run, images)
    assert len(list((tmp_path / "work" / "unnamed").iterdir())) == 1
    (package / "tool.py").write_text("def by(x):\n    return 3 * x\n")
    first.map(work.run, images)  # still the run that began with the old source
    assert len(list((tmp_path / "work" / "unnamed").iterdir())) == 1
    make().map(work.run, images)
    assert len(list((tmp_path / "work" / "unnamed").iterdir())) == 2


def test_cached_is_shared_between_experiments_and_map_is_not(make, images):
    make().scope("a", seed=1).cached(scale, images)
    make().scope("b", seed=2).cached(scale, images)
    assert sum(CALLS) == 10
    make().scope("a").map(scale, images)
    make().scope("b").map(scale, images)
    assert sum(CALLS) == 30


def test_cached_random_work_is_shared_within_a_seed(make, images):
    function = functools.partial(perturb, nn.Identity().eval())
    drawn = [
        make()
        .scope(name, seed=seed)
        .cached(function, images, images[:, 0, 0, 0], randomness=True)
        .value
        for name, seed in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert sum(CALLS) == 20
    assert torch.equal(drawn[0].perturbations, drawn[1].perturbations)
    assert not torch.equal(drawn[0].perturbations, drawn[2].perturbations)


def test_a_task_runs_once(make):
    first = make().scope("t").task(functools.partial(train, 3), name="seed 0")
    again = make().scope("t").task(functools.partial(train, 3))
    assert CALLS == [3]
    assert torch.equal(again.value["weight"], torch.arange(3))
    assert again.value["loss"] == 0.5
    assert torch.equal(first.seconds, again.seconds)
    assert first.seconds.shape == (1,)
    make().scope("t", seed=1).task(functools.partial(train, 3))
    make().scope("t").task(functools.partial(train, 4))
    assert CALLS == [3, 3, 4]


def test_a_shared_task_depends_on_neither_experiment_nor_seed(make):
    first = make().scope("a", network="one", seed=1).shared_task(functools.partial(train, 3))
    again = make().scope("b", network="two", seed=2).shared_task(functools.partial(train, 3))
    assert CALLS == [3]
    assert torch.equal(first.value["weight"], again.value["weight"])
    assert torch.equal(first.seconds, again.seconds)
    assert len(chunk_files(make(), "shared")) == 1
    make().scope("a", seed=1).shared_task(functools.partial(train, 4))
    make().scope("a", seed=1).task(functools.partial(train, 3))
    assert CALLS == [3, 4, 3]


def test_for_seed_keeps_experiment_and_network(make, images):
    make().scope("e", network="n", seed=2).map(scale, images)
    make().scope("e").for_seed(2).map(scale, images)
    make().scope("e", seed=0).map(scale, images)
    make().scope("e").map(scale, images)
    assert sum(CALLS) == 20


# Randomness


def test_random_numbers_do_not_depend_on_the_chunks(make, images):
    function = functools.partial(perturb, nn.Identity().eval())
    labels, scope = torch.arange(10), make().scope("e")
    runs = [scope.map(function, images, labels, chunk=size, randomness=True) for size in (1, 3, 10)]
    assert torch.equal(runs[0].value.perturbations, runs[1].value.perturbations)
    assert torch.equal(runs[0].value.perturbations, runs[2].value.perturbations)
    expected = randomness.normal(images, randomness.per_image(0, "e", range(10))) + images
    assert torch.equal(runs[0].value.perturbations, expected)


def test_a_named_stream_is_that_of_the_experiment_of_that_name(make, images):
    function = functools.partial(perturb, nn.Identity().eval())
    labels = torch.arange(10)

    def noise(experiment, stream, seed=3):
        scope = make().scope(experiment, seed=seed)
        return scope.map(function, images, labels, randomness=stream).value.perturbations

    expected = randomness.normal(images, randomness.per_image(3, "detect", range(10))) + images
    assert torch.equal(noise("detect", True), expected)
    assert torch.equal(noise("other", "detect"), expected)
    assert not torch.equal(noise("other", True), expected)
    assert not torch.equal(noise("other", "detect", seed=4), expected)
    assert sum(CALLS) == 40


def test_the_global_random_state_stays(make, images):
    before = torch.random.get_rng_state()
    executor = make().scope("e")
    executor.map(functools.partial(perturb, layer(1.0)), images, torch.arange(10), randomness=True)
    executor.task(functools.partial(train, 2))
    torch.random.set_rng_state(before)  # layer() drew its first weights
    executor.map(
        functools.partial(perturb, nn.Identity().eval()), images, torch.arange(10), randomness=True
    )
    assert torch.equal(torch.random.get_rng_state(), before)


# Memory


def test_out_of_memory_halves_the_batch_and_keeps_the_layout(make, images, caplog):
    plain = make().scope("plain").map(functools.partial(hungry, limit=99), images, chunk=8)
    files = len(chunk_files(make(), "plain"))
    CALLS.clear()
    with caplog.at_level(logging.WARNING):
        scarce = make().scope("scarce").map(functools.partial(hungry, limit=3), images, chunk=8)
    assert CALLS == [8, 4, 2, 2, 2, 2, 2]
    assert torch.equal(plain.value, scarce.value)
    assert len(chunk_files(make(), "scarce")) == files == 2
    assert [record.getMessage() for record in caplog.records] == [
        "hungry: out of memory, going on with 4 images at a time",
        "hungry: out of memory, going on with 2 images at a time",
    ]


def test_out_of_memory_does_not_change_random_numbers(make, images):
    runs = [
        make(work=make()._work / str(limit))
        .scope("e")
        .map(functools.partial(hungry_random, limit=limit), images, randomness=True)
        for limit in (99, 1)
    ]
    assert torch.equal(runs[0].value, runs[1].value)


def test_one_image_too_many_for_the_memory_raises(make, images):
    with pytest.raises(torch.OutOfMemoryError):
        make().map(functools.partial(hungry, limit=0), images)


# Misuse


def test_results_without_one_row_an_image_are_refused(make, images):
    with pytest.raises(ValueError, match=r"total returned tensors with \[-1\] rows for 4 images"):
        make().map(total, images)


def test_results_that_are_not_tensors_are_refused(make, images):
    with pytest.raises(TypeError, match="not float"):
        make().map(number, images)


def test_lengths_must_agree(make, images):
    with pytest.raises(ValueError, match=r"one length, not of lengths \[9, 10\]"):
        make().map(scale, images, images[:9])
    with pytest.raises(ValueError, match="one length"):
        make().map(scale)


def test_a_lambda_is_refused_before_any_work(make, images):
    with pytest.raises(TypeError, match="no fingerprint"):
        make().map(lambda x: x, images)


@pytest.mark.parametrize("place", ["file", "file/inside", "/dev/null/inside"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(make, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        make(work=tmp_path / place)
    text = str(caught.value)
    assert text.startswith("executor.work must be a folder that can be written (")
    assert str(tmp_path / place) in text
    assert "\n" not in text


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def saved(images):
    class Full:
        write = flush = no_space

    torch.save(images, Full())  # a RuntimeError that was raised while handling the full disk
    return images


WRITES = {
    "map": lambda executor, images: executor.map(scale, images),
    "cached": lambda executor, images: executor.cached(scale, images),
    "task": lambda executor, _: executor.task(functools.partial(train, 3)),
    "shared_task": lambda executor, _: executor.shared_task(functools.partial(train, 3)),
    "inside": lambda executor, images: executor.map(saved, images),
}


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_that_names_the_folder(make, images, monkeypatch, kind, workers):
    executor = make(workers=workers)
    if kind != "inside":
        monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError) as caught:
        WRITES[kind](executor, images)
    text = str(caught.value)
    assert text.startswith(f"{executor.work} must be on a disk with free space (delete ")
    assert text.endswith("; got a full disk")
    assert "\n" not in text
    assert not [path for path in executor.work.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"accelerator": "tpu"}, "executor.accelerator must be one of auto, cpu.*; got 'tpu'"),
        ({"accelerator": "mps"}, "executor.accelerator must be .*; got '?mps"),
        ({"precision": "8-mixed"}, "executor.precision must be one of 32-true.*; got '8-mixed'"),
        ({"precision": "16-mixed"}, "where there is no GPU"),
        ({"threads": 0}, "executor.threads must be .*; got 0"),
        ({"devices": 0}, "executor.devices must be .*; got 0"),
        ({"chunk": 2.5}, "executor.chunk must be .*; got 2.5"),
    ],
)
def test_settings_that_cannot_be_honoured_are_input_errors(make, option, message):
    with pytest.raises(InputError, match=message):
        make(**option)


# The process


def test_threads_and_determinism_are_set(make, images):
    executor = make(threads=2)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    executor.map(scale, images)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()


def test_double_precision_moves_everything(make, images):
    executor = make(precision="64-true")
    model = executor.to_device(layer(1.0))
    value = executor.map(functools.partial(perturb, model), images, torch.arange(10)).value
    assert value.perturbations.dtype == torch.float64
    assert value.labels.dtype == torch.long


def products(model, images):
    inputs = images.clone().requires_grad_()
    logits = model(inputs)
    (gradient,) = torch.autograd.grad(logits.sum(), inputs)
    return {"logits": logits, "gradient": gradient}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_gradients_with_respect_to_images_work_in_every_precision(make, images, precision):
    executor = make(precision=precision)
    model = executor.to_device(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval())
    value = executor.map(functools.partial(products, model), images).value
    wanted = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.bfloat16}[
        precision
    ]
    assert value["logits"].dtype == wanted
    assert value["gradient"].shape == images.shape


def test_alive_is_asked_before_each_chunk(make, images):
    asked = []

    def alive() -> None:
        asked.append(len(CALLS))
        if len(asked) == 2:
            raise SystemExit("the parent has gone")

    with pytest.raises(SystemExit):
        make(alive=alive).map(scale, images)
    assert asked == [0, 1]


def test_progress_is_a_line_where_there_is_no_terminal(make, images, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_EVERY", 0.0)
    make(progress=True).scope("attack_l2").map(scale, images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("attack_l2 · scale:  40%")
    assert "4/10" in lines[0]
    assert "images/s" in lines[0]
    make(progress=False).scope("quiet").map(scale, images)
    assert capsys.readouterr().err == ""


def drawn(attack, images, *, generator=None):
    return attack(images)


def judged(attack, images):
    return attack(images)


def test_progress_names_experiment_network_seed_and_attack(make, images, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_EVERY", 0.0)
    executor = make(progress=True, chunk=10).scope("attack_l2", network="mnist5k_lenet")

    def label(work) -> str:
        work()
        (line,) = capsys.readouterr().err.splitlines()
        return re.sub(r"(: +\d+%.*| \.\.\.)$", "", line)

    attack = functools.partial(scale, factor=2.5)
    run, inside = functools.partial(judged, attack), functools.partial(drawn, attack)
    seeded, across = executor.for_seed(1), make(progress=True, chunk=10).scope("sc_transfer")
    training = functools.partial(train, 2)
    assert label(lambda: executor.map(run, images)) == "attack_l2 · mnist5k_lenet · scale"
    assert label(lambda: seeded.map(run, images)) == "attack_l2 · mnist5k_lenet · seed 1 · scale"
    assert label(lambda: seeded.cached(inside, images)) == (
        "attack_l2 · mnist5k_lenet · seed 1 · drawn (scale)"
    )
    assert label(lambda: seeded.cached(fail_at_the_third, images)) == (
        "attack_l2 · mnist5k_lenet · seed 1 · fail at the third"
    )
    assert label(lambda: seeded.shared_task(training, name="one training")) == (
        "attack_l2 · mnist5k_lenet · seed 1 · one training"
    )
    assert label(lambda: seeded.task(training)) == "attack_l2 · mnist5k_lenet · seed 1 · train"
    assert label(lambda: across.for_seed(2).map(run, images)) == "sc_transfer · seed 2 · scale"
    assert label(lambda: make(progress=True).task(training)) == "train"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_module.Progress("attack_l2", 10) as progress:
        progress.advance(10)
    assert "attack_l2:   0%" in capsys.readouterr().err


# Several processes


SCRIPT = """
import functools, json, sys
from pathlib import Path
import torch
from pipeline.executor import Executor
import shard

options = {"accelerator": "cpu", "devices": 2, "threads": 1, "chunk": 3, "progress": False}
executor = Executor(**options, work=sys.argv[1])
images = torch.arange(40.0).reshape(10, 1, 2, 2)
mapped = executor.scope("e").map(shard.run, images, randomness=True).value
trained = executor.scope("e").task(functools.partial(shard.train, 4)).value
report = {"y": mapped["y"].tolist(), "ranks": mapped["rank"].tolist(), "trained": trained.tolist()}
name = "zero" if executor.is_global_zero else "other"
Path(sys.argv[1], name + ".json").write_text(json.dumps(report))
"""

SHARD = """
import os
import torch
from robustness_geometry.randomness import normal

def run(x, generator=None):
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return {"y": x + normal(x, generator), "rank": torch.full((len(x),), rank)}

def train(n):
    return torch.arange(n) + 10 * int(os.environ.get("LOCAL_RANK", 0))
"""


def test_two_processes_share_the_chunks_and_agree_with_one(make, tmp_path, root, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "shard.py").write_text(SHARD)
    command = [sys.executable, "script.py", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    zero, other = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("zero", "other")
    )
    assert zero == other
    assert zero["ranks"] == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]
    assert zero["trained"] == [0, 1, 2, 3]

    monkeypatch.syspath_prepend(tmp_path)
    import shard

    images = torch.arange(40.0).reshape(10, 1, 2, 2)
    alone = make(chunk=3).scope("e").map(shard.run, images, randomness=True).value
    assert zero["y"] == alone["y"].tolist()


# Copies of the process


def whose(images):
    time.sleep(0.02)  # long enough for every process to get a chunk
    return torch.full((len(images),), os.getpid(), dtype=torch.float64)


def test_copies_take_chunks_and_the_result_is_that_of_one_process(make, tmp_path, images):
    alone = make(chunk=1).map(functools.partial(scale, factor=3.0), images)
    shared = make(chunk=1, workers=3, work=tmp_path / "other").map(
        functools.partial(scale, factor=3.0), images
    )
    assert torch.equal(alone.value, shared.value)
    processes = make(chunk=1, workers=3).map(whose, images).value.unique()
    assert len(processes) == 3
    assert os.getpid() in processes


def test_random_numbers_do_not_depend_on_the_process(make, tmp_path, images):
    model, labels = nn.Identity(), torch.zeros(10, dtype=torch.long)
    found = [
        make(chunk=2, workers=workers, work=tmp_path / str(workers))
        .scope("e", seed=1)
        .map(functools.partial(perturb, model), images, labels, randomness=True)
        .value.perturbations
        for workers in (1, 2)
    ]
    assert torch.equal(*found)


def failing(images):
    raise ValueError(f"{len(images)} images of no use")


def test_an_error_of_a_copy_is_met_by_the_caller(make, images):
    with pytest.raises(ValueError, match="of no use"):
        make(chunk=1, workers=2).map(failing, images)


def killed_elsewhere(owner, images):
    if os.getpid() != owner:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return 2 * images


def test_chunks_of_a_killed_copy_are_computed_here_and_room_is_made_again(make, images):
    executor = make(chunk=1, workers=2)
    for _ in range(2):
        found = (
            executor.scope(str(_))
            .map(functools.partial(killed_elsewhere, os.getpid()), images)
            .value
        )
        assert torch.equal(found, 2 * images)
    assert len(executor.map(whose, images).value.unique()) == 2


def numbered(number, images):
    time.sleep(0.02)
    return {"owner": torch.full((len(images),), os.getpid()), "value": number * images}


def test_each_divides_items_and_keeps_their_order(make, images):
    executor = make(chunk=5, workers=2)

    def item(number):
        nested = (
            executor.scope("item", seed=number)
            .map(functools.partial(numbered, number), images)
            .value
        )
        once = executor.scope("item", seed=number).task(functools.partial(whose, images[:1])).value
        return number, nested["value"], {*nested["owner"].tolist(), *once.tolist()}

    found = executor.each(item, range(4))
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert all(torch.equal(value, number * images) for number, value, _ in found)
    assert len(set.union(*(owners for _, _, owners in found))) >= 2
    assert executor.each(item, []) == []


@pytest.mark.parametrize("accelerator", ["cpu"])
def test_workers_come_from_the_cores_and_are_checked(make, accelerator):
    assert make(accelerator=accelerator, workers=None).map(scale, torch.ones(3, 1)).value.sum() == 6
    with pytest.raises(InputError, match=r"executor\.workers must be .*; got 0"):
        make(workers=0)


def test_a_call_makes_at_least_two_chunks_of_enough_images(make):
    folder = make(chunk=250)
    folder.map(scale, torch.ones(100, 1))
    assert CALLS == [50, 50]
    CALLS.clear()
    folder.map(scale, torch.ones(20, 1))
    assert CALLS == [20]
