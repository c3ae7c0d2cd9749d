"""A sweep in one table and one figure, and the commands of its jobs that have no results.

``python -m pipeline.sweep multirun/2026-01-31/12-00-00`` writes ``sweep.csv``, a row for each job,
and ``sweep.png``, one metric over what was swept (``--metric`` chooses it), into that folder.
``--missing`` prints instead the commands of the jobs without results, such as those of an
interrupted sweep: ``python -m pipeline.sweep --missing FOLDER | sh`` runs them, each in its own
folder of the sweep. What they had finished before is taken up.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from matplotlib.figure import Figure

from pipeline.ledger import RUN, digest, make_room, read_list, write_list
from pipeline.params import ROOT
from pipeline.plots import bar_figure, estimate_line, line_figure, save
from pipeline.statistics import Estimate
from robustness_geometry.checks import InputError, one_of, refuse
from robustness_geometry.files import whole

__all__ = ["Job", "Sweep", "figure", "main", "missing", "read", "table"]

TABLE, FIGURE = "sweep.csv", "sweep.png"
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
MANY = 30
"""So many jobs are drawn at most where bars stand for them."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: its overrides, such as ``attack.norm=2``.
        folder: where its results are, or belong.
        metrics: name -> estimate; empty where it has no results.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    metrics: Mapping[str, Estimate]

    @property
    def values(self) -> dict[str, str]:
        """What it overrides: key -> value, as text."""
        return dict(word.lstrip("+").partition("=")[::2] for word in self.overrides)


@dataclass(frozen=True)
class Sweep:
    """A sweep of one stage.

    Attributes:
        folder: the sweep's folder.
        stage: the name of the stage.
        jobs: all of its runs in their order, also those that never began.
    """

    folder: Path
    stage: str
    jobs: Sequence[Job]

    @property
    def swept(self) -> list[str]:
        """The keys whose value differs between jobs."""
        every = [job.values for job in self.jobs]
        keys = dict.fromkeys(key for values in every for key in values)
        return [key for key in keys if len({values.get(key) for values in every}) > 1]

    @property
    def metrics(self) -> list[str]:
        """The metrics of the jobs with results: those that most of them have come first."""
        found = [name for job in self.jobs for name in job.metrics]
        return sorted(dict.fromkeys(found), key=lambda name: -found.count(name))


def read(folder: Path) -> Sweep:
    """The sweep that lies in a folder.

    Raises:
        InputError: no sweep of a stage lies there, or one of another sweeper than Hydra's own.
    """
    path = folder / "multirun.yaml"
    wanted = "the folder of a sweep (-m) of a stage, with its multirun.yaml"
    if not path.is_file():
        refuse("folder", folder, wanted)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        given = yaml.safe_load(text)["hydra"]
        task, sweeper = given["overrides"]["task"], given["sweeper"]
        ours = RUN.search(text)
        if ours is None or not isinstance(task, list):
            refuse("folder", folder, wanted)
    except (yaml.YAMLError, KeyError, TypeError):
        refuse("folder", folder, wanted)
    if sweeper.get("_target_") != BASIC:
        refuse("folder", folder, f"a sweep of {BASIC}, whose jobs follow from its command")
    words = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *task]
    return Sweep(folder, ours[1], _jobs(folder, _expanded(words)))


def _expanded(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every job, as Hydra's sweeper makes them of those of the command."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        batches = BasicSweeper.split_arguments(parser.parse_overrides(list(words)), None)
    return [tuple(job) for batch in batches for job in batch]


def _jobs(folder: Path, every: Sequence[tuple[str, ...]]) -> list[Job]:
    began = {}
    for path in sorted(folder.rglob(".hydra/overrides.yaml")):
        words = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        if isinstance(words, list):
            began[_plain(words)] = path.parent.parent
    places = [began.get(_plain(words), folder / str(n)) for n, words in enumerate(every)]
    jobs = zip(every, places, strict=True)
    return [
        Job(n, words, place, _metrics(place) if _plain(words) in began else {})
        for n, (words, place) in enumerate(jobs)
    ]


def _plain(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(word).lstrip("+") for word in words)


def _metrics(folder: Path) -> dict[str, Estimate]:
    """The numbers of a job; none where it has no whole ``metrics.json``."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["experiments"]
        return {
            f"{experiment}.{name}": Estimate(**{k: _number(v) for k, v in number.items()})
            for experiment, each in found.items()
            for name, number in each["numbers"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def table(sweep: Sweep) -> pd.DataFrame:
    """A row for each job: its number, its overrides, and value, low, high and n of each metric.

    The cells of a job without results are empty.
    """
    rows = []
    for job in sweep.jobs:
        row: dict[str, object] = {"job": job.number, **job.values}
        for name in sweep.metrics:
            if (found := job.metrics.get(name)) is not None:
                ends = {"low": found.low, "high": found.high, "n": found.n}
                row |= {name: found.value, **{f"{name} {end}": v for end, v in ends.items()}}
        rows.append(row)
    names = [f"{name}{end}" for name in sweep.metrics for end in ("", " low", " high", " n")]
    keys = dict.fromkeys(key for job in sweep.jobs for key in job.values)
    return pd.DataFrame(rows, columns=["job", *keys, *names])


def figure(sweep: Sweep, metric: str | None = None) -> Figure:
    """One metric over what was swept, with its 95% intervals.

    It is a curve where a swept key has numbers for values (the one with most of them), one for
    each combination of the others; and bars otherwise.

    Args:
        sweep: the sweep; jobs without the metric are left out.
        metric: its name; None: the first of those that most jobs have.

    Raises:
        InputError: no job has such a metric.
    """
    names = sweep.metrics
    if not names:
        refuse("folder", sweep.folder, "a sweep with results; no job of this one has any")
    name = metric or names[0]
    if name not in names:
        refuse("--metric", name, one_of(names))
    done = [job for job in sweep.jobs if name in job.metrics]
    along = _abscissa(sweep.swept, done)
    others = [key for key in sweep.swept if key != along]
    if along is None:
        bars = {_label(job, others) or str(job.number): {name: job.metrics[name]} for job in done}
        shown = dict(list(bars.items())[:MANY])
        return bar_figure(shown, ylabel=name, width=max(7.0, 1.1 * len(shown)))
    groups: dict[str, list[Job]] = {}
    for job in sorted(done, key=lambda job: float(job.values[along])):
        groups.setdefault(_label(job, others), []).append(job)
    lines = {
        label: estimate_line(
            [float(job.values[along]) for job in jobs], [job.metrics[name] for job in jobs]
        )
        for label, jobs in groups.items()
    }
    x = [float(job.values[along]) for job in done]
    wide = min(x) > 0 and max(x) >= 20 * min(x)
    return line_figure(lines, xlabel=along, ylabel=name, log_x=wide)


def _abscissa(keys: Sequence[str], jobs: Sequence[Job]) -> str | None:
    """The key with most numbers among the values that were swept; None where none has two."""
    counts = {key: _count(key, jobs) for key in keys}
    best = max(counts, key=lambda key: counts[key], default=None)
    return best if best is not None and counts[best] > 1 else None


def _count(key: str, jobs: Sequence[Job]) -> int:
    """How many numbers a key has; 0 where it has other values, an infinity among them."""
    try:
        values = {float(job.values[key]) for job in jobs}
    except (KeyError, ValueError):
        return 0
    return len(values) if all(abs(value) < float("inf") for value in values) else 0


def _label(job: Job, keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={job.values.get(key, '')}" for key in keys)


def missing(sweep: Sweep) -> list[str]:
    """The commands of the jobs without results, each of which writes where the sweep would have.

    Chunks of work that an interrupted job had finished are taken up, as in every run.
    """
    return [
        shlex.join(
            ["python", "-m", f"stages.{sweep.stage}", *job.overrides, f"hydra.run.dir={job.folder}"]
        )
        for job in sweep.jobs
        if not job.metrics
    ]


def _write(sweep: Sweep, metric: str | None) -> None:
    """Write table and figure; a file of their name that this did not write is renamed."""
    drawn = figure(sweep, metric)
    before = read_list(sweep.folder) or {}
    for name in (TABLE, FIGURE):
        make_room(sweep.folder / name, before.get(name))
    with whole(sweep.folder / TABLE) as file:
        table(sweep).to_csv(file, index=False)
    part = sweep.folder / f"{FIGURE}.part"
    save(drawn, part)
    part.replace(sweep.folder / FIGURE)
    write_list(sweep.folder, {**before, **{n: digest(sweep.folder / n) for n in (TABLE, FIGURE)}})


class _OneLine(argparse.ArgumentParser):
    """Says in one line what it cannot use."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str]) -> int:
    """Write a sweep's table and figure, or print what is missing; returns the exit code."""
    parser = _OneLine(prog="python -m pipeline.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep, below multirun/")
    parser.add_argument("--metric", help="the metric of the figure, such as attack_l2.rho_df")
    parser.add_argument("--missing", action="store_true", help="print the commands of missing jobs")
    try:
        given = parser.parse_args(arguments)
        sweep = read(given.folder)
        left = missing(sweep)
        if given.missing:
            print("\n".join(left), end="\n" if left else "")
            return 0
        _write(sweep, given.metric)
    except (InputError, HydraException, OSError) as error:
        print(f"sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{sweep.folder / TABLE}\n{sweep.folder / FIGURE}")
    if left:
        print(f"sweep: {len(left)} of {len(sweep.jobs)} jobs have no results", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
