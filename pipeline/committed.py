"""The results that are committed, as runs of the dashboard: a fresh clone has logged none yet."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import processes
from pipeline.ledger import digest
from pipeline.runs import DIGEST, cut, run_name, verdicts
from pipeline.tracking import Store

__all__ = ["Result", "import_committed"]

IMPORTED = "imported"
"""The tag of a run that was not logged while it ran; its value says where it comes from."""

_FILES = ("results/*/*/*/metrics.json", "results/*/claims.json")
_ALL = 3  # MLflow's view of runs that are there and runs that were deleted


@dataclass(frozen=True)
class Result:
    """A file of results.

    Attributes:
        path: ``results/<suite>/<stage>/<network>/metrics.json`` or ``results/<suite>/claims.json``.
        suite: name of the suite.
        stage: name of the stage; "report" for the verdicts.
        network: name of the network; "all" for several.
    """

    path: Path
    suite: str
    stage: str
    network: str


def import_committed(store: Store) -> list[str]:
    """Make a run of each committed result that no run of the store holds yet.

    A result is known by its digest: what a run here has logged, and what was imported before, even
    if it was deleted since, is left as it is. No other run is touched.

    Args:
        store: the tracking store.

    Returns:
        The names of the runs that were made.
    """
    names: list[str] = []
    root = processes.root()
    with store.lock():
        known = _known(store)
        fresh = [each for each in _committed(root) if digest(each.path) not in known]
        if not fresh:
            return []
        when = int(1000 * _committed_at(root))
        for index, result in enumerate(fresh):
            try:
                names.append(_import(store, result, when + index))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"dashboard: {result.path} was not imported: {reason}", file=sys.stderr)
    return names


def _known(store: Store) -> set[str]:
    """The digests of the results that runs hold, deleted ones too."""
    found: set[str] = set()
    for name in ("metrics.json", "claims.json"):
        tag, token = f"{DIGEST}{name}", None
        while True:
            page = store.client.search_runs(
                [store.experiment], f"tags.`{tag}` LIKE '%'", _ALL, 1000, page_token=token
            )
            found |= {run.data.tags[tag] for run in page}
            token = page.token
            if not token:
                break
    return found


def _committed(root: Path) -> list[Result]:
    """The results below ``root`` as git has them; all of them where there is no git.

    They are in the order of the dashboard's table from below, where the newest run stands first:
    at its top are the verdicts of the first suite.
    """
    tracked, changed = (
        _git(root, "ls-files", "-z"),
        _git(root, "diff", "--relative", "--name-only", "-z", "HEAD"),
    )
    results = []
    for pattern in _FILES:
        for path in root.glob(pattern):
            name = path.relative_to(root).as_posix()
            if tracked is None or (name in tracked and name not in (changed or ())):
                _, suite, *rest = path.parent.relative_to(root).parts
                stage, network = rest or ("report", "all")
                results.append(Result(path, suite, stage, network))
    return sorted(
        results, key=lambda r: (r.suite, r.stage != "report", r.stage, r.network), reverse=True
    )


def _git(root: Path, *words: str) -> set[str] | None:
    """The names below results/ that a command of git tells, apart by NUL; None without git."""
    command = ["git", *words, "--", "results"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.decode(errors="surrogateescape").split("\0"))


def _committed_at(root: Path) -> float:
    """When the results were last committed, in seconds since 1970; now where there is no git."""
    told = _git(root, "log", "-1", "--format=%ct") or {""}
    return float(next(iter(told)).strip() or time.time())


def _import(store: Store, result: Result, when: int) -> str:
    """Make one run; returns its name.

    Args:
        store: the tracking store.
        result: what it holds.
        when: its time, in milliseconds since 1970.
    """
    content = json.loads(result.path.read_text("utf-8"))
    groups = list(_curves(result, content))
    outcome = verdicts(result.path)[1] if result.stage == "report" else ""
    network = "" if result.stage == "report" else result.network
    name = run_name(result.suite, result.stage, network, "committed", outcome)
    tags = {
        IMPORTED: "committed results",
        "suite": result.suite,
        "stage": result.stage,
        "network": result.network,
        "mlflow.source.name": result.path.relative_to(processes.root()).as_posix(),
        "mlflow.source.type": "LOCAL",
        f"{DIGEST}{result.path.name}": digest(result.path),
    }
    run = str(
        store.client.create_run(
            store.experiment, start_time=when, run_name=name, tags=tags
        ).info.run_id
    )
    logged = store.logged(run)
    for group, curves in groups:
        logged.log_curves(group, curves)
    for key in ("dataset", "seeds"):
        if key in content:
            store.client.log_param(run, key, cut(content[key]))
    store.client.log_artifact(run, str(result.path))
    if (tables := result.path.parent / "tables").is_dir():
        logged.log_folder(tables)
    store.client.set_terminated(run, "FINISHED", when)
    return name


def _curves(
    result: Result, content: dict[str, Any]
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Groups of numbers and curves, as a run of a stage would log them."""
    if result.stage == "report":
        for group, numbers in verdicts(result.path)[0].items():
            yield group, {name: [value] for name, value in numbers.items()}
        return
    for experiment, found in content["experiments"].items():
        curves = {name: _finite([each["value"]]) for name, each in found["numbers"].items()}
        curves |= {name: _finite(values) for name, values in found.get("curves", {}).items()}
        yield experiment, curves


def _finite(values: list[float | None]) -> list[float]:
    """JSON has no NaN: null stands for it."""
    return [float("nan") if value is None else value for value in values]
