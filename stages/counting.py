"""What the experiments of a suite would compute: counted on a few images, at the real settings.

``python -m stages.counting suite=thesis budget=full`` prints one line of JSON for each experiment
and network; :mod:`pipeline.plan` makes a table of them. Every experiment runs with the settings of
the suite and its budget, on made-up pictures as many as the data set holds and on a small network
in place of the real one. Only its executor differs: where many images are to be worked on, it does
the work on a few, counts the passes, multiplies them by the share that was left out, and hands the
few results on as if they were those of all. Trainings and other indivisible pieces of work are
done on a few images and multiplied likewise.

What is uncertain: how often an iteration that stops by itself goes round, such as DeepFool's or
Algorithm 4's, is that of the small network, and of pictures that are easy to tell apart; a real
network may take a few times as many. Work that goes through no network is not counted, nor are
passes inside lower bounds and exact distances.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from pipeline.executor import Executor, Mapped
from pipeline.findings import Findings
from pipeline.jobs import Job
from pipeline.keys import Fingerprint
from pipeline.storage import Chunk, flatten, rebuild
from robustness_geometry.checks import InputError, one_of, refuse
from robustness_geometry.randomness import per_image
from robustness_geometry.training import Recipe
from robustness_geometry.types import Dataset, Network, Split
from stages.command_line import CONF
from stages.config import Config, NetworkConfig, read, recipe
from stages.experiments import ACROSS, STAGES, Experiment, select
from stages.sizes import size_of
from stages.stand_ins import PASSES, Counted, made_up_data, stand_in
from stages.tuning import tuned

__all__ = ["Sampling", "count", "counted", "cut", "main"]

FEW = 4
"""Images that are worked on in place of all."""

CHEAP = 20_000
"""Forward passes of the small network up to which all images are worked on after all."""

LIMIT = 10
"""Seconds of processor time for an experiment; what it counts until then is a lower bound."""

TRIED = Counted(forward=5.0, backward=4.0)
"""Passes with which a training tries the network, however many images it has."""

RESAMPLES = 20
CLOSED = "no network: closed forms"
SKIPPED = {
    "attack_closed_forms": CLOSED,
    "theorem1_affine": CLOSED,
    "theorem2_corollary1": CLOSED,
    "theorem3_flat": CLOSED,
    "theorem4_curved": CLOSED,
    "theorem5": CLOSED,
    "bracket": "at least: bounds and exact distances are no passes",
}
"""Experiments that are not run, and why."""


class Sampling(Executor):
    """An executor that works on a few images of many, and counts what all would take.

    Args:
        work: folder for what trainings keep.
    """

    def __init__(self, work: str) -> None:
        super().__init__(accelerator="cpu", threads=1, workers=1, progress=False, work=work)
        self.total = Counted()
        self._known: dict[bytes, Chunk] = {}

    def _map(self, job: Job[Any]) -> Mapped[Any]:
        count = len(job.tensors[0])
        parts = tuple(tensor[:FEW] for tensor in job.tensors)
        found = self._once(self._key(job, parts, count), partial(self._measured, job, parts, count))
        rows = torch.arange(count) % max(1, min(found.rows() or {1}))
        whole = Chunk({name: t[rows] for name, t in found.tensors.items()}, found.shape)
        return Mapped(rebuild(whole), torch.full((count,), 1e-3, dtype=torch.float64))

    def _once(self, key: bytes | None, work: Callable[[], Chunk]) -> Chunk:
        """What ``work`` returns, which is done once for each key."""
        if key is None:
            return work()
        if key not in self._known:
            self._known[key] = work()
        return self._known[key]

    def _key(self, job: Job[Any], parts: object, count: int) -> bytes | None:
        """Equal for work that the executor would do once; None where that cannot be told."""
        try:
            random = job.stream and self._seed
            return Fingerprint().of((job.function, parts, count, job.where, job.stream, random))
        except TypeError:
            return None

    def _measured(self, job: Job[Any], parts: tuple[Tensor, ...], count: int) -> Chunk:
        few = len(parts[0])
        began = replace(PASSES)
        found = self._called(job, parts)
        used = PASSES.since(began)
        if few < count and not used.backward and used.forward * count <= CHEAP * few:
            found = self._called(job, job.tensors)
        self.total.add(used, count / max(1, few))
        self._keep(found, count / max(1, min(found.rows() or {1})))
        return found

    def _called(self, job: Job[Any], parts: Sequence[Tensor]) -> Chunk:
        random = {}
        if job.stream:
            random = {"generator": per_image(self._seed, job.stream, range(len(parts[0])))}
        return flatten(job.function(*parts, **random))

    def _task(self, job: Job[Any], name: str | None) -> Mapped[Any]:
        function, times = job.function, [1.0]
        if "universal gradient" not in job.name:  # takes as many batches of any set of images
            function = cut(function, times)
        found = self._once(self._key(job, None, 0), partial(self._done, function, max(times)))
        return Mapped(rebuild(found), torch.tensor([1.0], dtype=torch.float64))

    def _done(self, function: Callable[[], Any], times: float) -> Chunk:
        began = replace(PASSES)
        found = flatten(function())
        used = PASSES.since(began)
        if any(isinstance(part, Recipe) for part in _parts(function)):
            used.add(TRIED, -1.0)
            used.backward = max(used.backward, used.forward)  # gradients of the weights
        self.total.add(used, times)
        self._keep(found, 1.0)
        return found

    def _keep(self, chunk: Chunk, times: float) -> None:
        size = sum(t.numel() * t.element_size() for t in chunk.tensors.values())
        self.total.bytes += times * size


def cut(value: Any, times: list[float], *, few: int = 2 * FEW) -> Any:
    """A piece of work on the first few of its images; ``times`` gets the factors left out.

    Args:
        value: a partial, or what is bound to one: tensors and splits of images are cut.
        times: is appended to.
        few: how many images are left.

    Example:
        >>> import torch
        >>> from stages.counting import cut
        >>> times = []
        >>> len(cut(torch.zeros(80, 1, 4, 4), times)), times
        (8, [10.0])
    """
    if isinstance(value, partial):
        bound = {key: cut(part, times, few=few) for key, part in value.keywords.items()}
        return partial(value.func, *(cut(part, times, few=few) for part in value.args), **bound)
    if isinstance(value, Split) and len(value) > few:
        times.append(len(value) / few)
        return value.first(few)
    if isinstance(value, Tensor) and value.ndim and len(value) > few:
        times.append(len(value) / few)
        return value[:few]
    return value


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, partial):
        for part in (*value.args, *value.keywords.values()):
            yield part
            yield from _parts(part)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within it a TimeoutError is raised after so many seconds of processor time."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def counted(
    experiment: Experiment,
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    executor: Sampling,
    seconds: float = LIMIT,
) -> tuple[Counted, str]:
    """What an experiment would compute, and why that is a lower bound; empty if it is not."""
    settings = experiment.settings
    if "resamples" in {entry.name for entry in fields(settings)}:
        settings = replace(settings, resamples=RESAMPLES)
    before, note = replace(executor.total), ""
    try:
        with time_limit(seconds):
            found: Findings = replace(experiment, settings=settings).measure(
                networks, data, executor
            )
        if not found.numbers and found.notes:
            note = found.notes[0]
    except Exception as error:
        note = f"at least: {type(error).__name__}: {' '.join(str(error).split())}"
    return executor.total.since(before), note


def count(config: Config, work: str) -> Iterator[dict[str, Any]]:
    """A line for each network, and for each stage and experiment that it is measured in.

    Args:
        config: the suite with its budget.
        work: a folder for what trainings keep.
    """
    sets: dict[str, Dataset] = {}
    for name, spec in config.networks.items():
        leaf = json.dumps(spec.dataset, sort_keys=True)
        data = sets[leaf] = sets.get(leaf) or made_up_data(spec)
        executor = Sampling(work)
        models = {seed: stand_in(data, seed) for seed in config.seeds}
        network = {name: Network(name, data.name, models)}
        chosen = {"chunk": config.executor["chunk"], "seeds": len(config.seeds)}
        yield {**size_of(name, spec, data), **chosen}
        yield _training(name, spec, data, len(config.seeds))
        own = tuned(replace(config, network=name))
        for stage in STAGES:
            listed = config.suite.networks.get(stage)
            if listed is None or name in listed:
                yield from _lines(stage, name, own, network, {name: data}, executor)
    yield from _across(config, sets, work)


def _across(config: Config, sets: Mapping[str, Dataset], work: str) -> Iterator[dict[str, Any]]:
    """The stages across networks, on those that take images of the commonest shape."""
    data = {
        name: sets[json.dumps(spec.dataset, sort_keys=True)]
        for name, spec in config.networks.items()
    }
    shapes = [each.shape for each in data.values()]
    common = max(shapes, key=shapes.count)
    data = {name: each for name, each in data.items() if each.shape == common}
    if len(data) < 2:
        return
    networks = {
        name: Network(name, each.name, {seed: stand_in(each, seed) for seed in config.seeds})
        for name, each in data.items()
    }
    for stage in ACROSS:
        yield from _lines(stage, "all", config, networks, data, Sampling(work))


def _training(name: str, spec: NetworkConfig, data: Dataset, seeds: int) -> dict[str, Any]:
    """The training of a network: an epoch is a forward and a backward pass of every image."""
    made = recipe(spec, f"networks.{name}.")
    passes = 0 if made is None else made.epochs * len(data.train) * seeds
    tests = 0 if made is None else made.epochs * len(data.test) * seeds
    return _line("train", "(training)", name, Counted(passes + tests, passes), 0.0, "")


def _lines(
    stage: str,
    name: str,
    config: Config,
    networks: Mapping[str, Network],
    data: Mapping[str, Dataset],
    executor: Sampling,
) -> Iterator[dict[str, Any]]:
    for experiment in select(stage, config):
        if experiment.name in SKIPPED:
            yield _line(stage, experiment.name, name, Counted(), 0.0, SKIPPED[experiment.name])
            continue
        began = time.process_time()
        found, note = counted(experiment, networks, data, executor)
        yield _line(stage, experiment.name, name, found, time.process_time() - began, note)


def _line(
    stage: str, experiment: str, network: str, found: Counted, seconds: float, note: str
) -> dict[str, Any]:
    where = {"stage": stage, "experiment": experiment, "network": network}
    passes = {"forward": found.forward, "backward": found.backward, "bytes": found.bytes}
    return {**where, **passes, "seconds": seconds, "note": note}


def main(arguments: Sequence[str]) -> int:
    """Print what is counted, a line of JSON each; returns the exit code."""
    try:
        names = [word.partition("=")[2] for word in arguments if word.startswith("networks=")]
        words = [word for word in arguments if not word.startswith("networks=")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            raw = compose("base", words)
        config = read(raw)
        chosen = [name for text in names for name in text.strip("[]").split(",") if name]
        for name in chosen:
            if name not in config.networks:
                refuse("networks", name, one_of(config.networks))
        kept = {name: config.networks[name] for name in chosen or config.networks}
        with tempfile.TemporaryDirectory(prefix="counting-") as work:
            for line in count(replace(config, networks=kept), work):
                print(json.dumps(line), flush=True)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(f"plan: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
