"""The files of a stage: metrics, timings, tables, figures and tensors of one network."""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from safetensors.torch import save_file

from pipeline.findings import Findings
from pipeline.statistics import Estimate

__all__ = ["FOLDERS", "figure_files", "write_results"]

FOLDERS = ("tables", "figures", "tensors")


def write_results(
    folder: Path,
    header: Mapping[str, Any],
    findings: Mapping[str, Findings],
    sections: Mapping[str, str],
    share: Callable[[int, Callable[[int], None]], None] | None = None,
) -> None:
    """Write the results of a stage on one network; the metrics come last, so their presence means all is there.

    Args:
        folder: ``results/<suite>/<stage>/<network>`` or a run's own folder; files in it are
            replaced.
        header: what stands at the top of ``metrics.json``: network, data set and seeds.
        findings: experiment -> its results.
        sections: experiment -> where it stands in the thesis.
        share: calls a function with every index below a number, such as an executor's ``share``,
            which draws figures in several processes; None does it here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        fresh = Path(name)
        for part in FOLDERS:
            (fresh / part).mkdir()
        if (kept := folder / "tensors").is_dir():
            shutil.copytree(kept, fresh / "tensors", dirs_exist_ok=True)
        for experiment, found in findings.items():
            _write_experiment(fresh, experiment, found)
        _draw(
            [
                (f, path)
                for name, found in findings.items()
                for f, path in _pictures(fresh, name, found)
            ],
            share,
        )
        _write_json(fresh / "timings.json", _timings(findings))
        _write_json(fresh / "metrics.json", {**header, "experiments": _metrics(findings, sections)})
        for part in FOLDERS:
            shutil.rmtree(folder / part, ignore_errors=True)
            (fresh / part).replace(folder / part)
        for part in ("timings.json", "metrics.json"):
            (fresh / part).replace(folder / part)


def _write_experiment(folder: Path, experiment: str, found: Findings) -> None:
    for name, table in found.tables.items():
        table.to_csv(
            folder / "tables" / f"{experiment}_{_file_name(name)}.csv",
            index=False,
            float_format="%.6g",
        )
    if found.tensors:
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in found.tensors.items()
        }
        save_file(tensors, folder / "tensors" / f"{experiment}.safetensors")


def figure_files(folder: Path, experiment: str, found: Findings) -> dict[str, Path]:
    """Where the figures of an experiment lie in a stage's ``folder``, by their names."""
    return {
        name: folder / "figures" / f"{experiment}_{_file_name(name)}.png" for name in found.figures
    }


def _pictures(folder: Path, experiment: str, found: Findings) -> list[tuple[Figure, Path]]:
    paths = figure_files(folder, experiment, found)
    return [(figure, paths[name]) for name, figure in found.figures.items()]


def _draw(
    pictures: Sequence[tuple[Figure, Path]],
    share: Callable[[int, Callable[[int], None]], None] | None,
) -> None:
    """Write every figure to its file, which is whole or not there."""

    def draw(index: int) -> None:
        figure, path = pictures[index]
        # No metadata: the same figure is the same bytes with every version of matplotlib's writer.
        figure.savefig(
            path.with_suffix(".part"), format="png", dpi=150, metadata={"Software": None}
        )
        path.with_suffix(".part").replace(path)

    if share is not None:
        share(len(pictures), draw)
    for index, (_, path) in enumerate(pictures):
        if (
            not path.exists()
        ):  # not shared out, or what another process failed at: the error is met here
            draw(index)


def _metrics(findings: Mapping[str, Findings], sections: Mapping[str, str]) -> dict[str, Any]:
    return {
        experiment: {
            "section": sections[experiment],
            "numbers": _numbers(found.numbers),
            "curves": {name: [_finite(v) for v in values] for name, values in found.curves.items()},
            "notes": found.notes,
        }
        for experiment, found in findings.items()
    }


def _timings(findings: Mapping[str, Findings]) -> dict[str, Any]:
    return {
        "experiments": {
            name: {"numbers": _numbers(found.timings)} for name, found in findings.items()
        }
    }


def _numbers(numbers: Mapping[str, Estimate]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {k: _finite(v) for k, v in estimate.as_dict().items()}
        for name, estimate in numbers.items()
    }


def _finite(value: float) -> float | int | None:
    """JSON has no NaN: what could not be measured is null."""
    return value if math.isfinite(value) else None


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
