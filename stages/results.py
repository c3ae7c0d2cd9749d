"""The files of a stage: metrics, timings, tables, figures and tensors of one network."""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from safetensors.torch import save_file

from pipeline.findings import Findings
from pipeline.ledger import (
    FILES,
    FOLDERS,
    LIST,
    digest,
    make_room,
    read_list,
    remove,
    there,
    write_list,
    written_before,
)
from pipeline.statistics import Estimate
from robustness_geometry.checks import refuse

__all__ = ["FOLDERS", "LIST", "check_folder", "figure_files", "write_results"]

Share = Callable[[int, Callable[[int], None]], None]
"""Calls a function with every index below a number."""


def check_folder(folder: Path) -> None:
    """Check, before any work, that results can be written to ``folder``.

    Raises:
        InputError: it is a file, lies below one, cannot be written to, or has files of another
            origin where the results belong.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if there(path))
    _check_writing(folder, nearest)
    for part in FOLDERS:
        if there(folder / part):
            if not (folder / part).is_dir():
                refuse("output", str(folder), f"a folder in which {part} is no file")
            _check_writing(folder, folder / part)
    if there(folder / LIST) and read_list(folder) is None:
        refuse("output", str(folder), f"a folder without a {LIST} of another program")
    before = written_before(folder)
    for part in FILES:
        if there(folder / part) and part not in before:
            refuse("output", str(folder), f"a folder without a {part} of another program")


def _check_writing(folder: Path, place: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".writing-"):
            pass
    except OSError as error:
        why = f"{place}: {error.strerror}"
        refuse("output", str(folder), f"a folder that can be written to ({why})")


def write_results(
    folder: Path,
    header: Mapping[str, Any],
    findings: Mapping[str, Findings],
    sections: Mapping[str, str],
    share: Share | None = None,
    weights: Callable[[Path], None] | None = None,
    keep_tensors: bool = True,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write the results of a stage on one network.

    The metrics come last, so that their presence means that everything is there. Of what lies in
    the folder, only files that an earlier run wrote, and that nobody changed since, are removed or
    replaced. Any other file whose name is needed is renamed, to ``name.before``.

    Args:
        folder: ``results/<suite>/<stage>/<network>``, or a run's own folder.
        header: the entries at the top of ``metrics.json``: network, data set and seeds.
        findings: experiment -> its results.
        sections: experiment -> where it stands in the thesis.
        share: draws figures in several processes, such as an executor's ``share``; None draws
            them here.
        weights: writes the networks' weights to a folder; None if there are none to be kept.
        keep_tensors: keep the tensors of earlier runs until they are replaced, as they may be
            weights that are read elsewhere.
        origin: what the run says of itself, for the timings file; None: nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        fresh = Path(name)
        for part in FOLDERS:
            (fresh / part).mkdir()
        for experiment, found in findings.items():
            _write_experiment(fresh, experiment, found)
        if weights is not None:
            weights(fresh / "tensors")
        pictures = [
            picture for name, found in findings.items() for picture in _pictures(fresh, name, found)
        ]
        _draw(pictures, share)
        _write_json(fresh / "timings.json", _timings(findings, origin))
        _write_json(fresh / "metrics.json", {**header, "experiments": _metrics(findings, sections)})
        _move(fresh, folder, keep_tensors)


def _move(fresh: Path, folder: Path, keep_tensors: bool) -> None:
    """Put the files of ``fresh`` into ``folder``, in the place of those of earlier runs."""
    before = written_before(folder)
    paths = [path.relative_to(fresh) for part in FOLDERS for path in (fresh / part).rglob("*")]
    names = [*sorted(path.as_posix() for path in paths if (fresh / path).is_file()), *FILES]
    new = {name: digest(fresh / name) for name in names}
    stay = {n: was for n, was in before.items() if n.startswith("tensors/") and keep_tensors}
    kept = {name: was for name, was in stay.items() if (folder / name).exists()}
    write_list(folder, {**new, **before})
    for name in before.keys() - kept.keys() - new.keys():
        remove(folder / name, before[name])
    for part in FOLDERS:
        (folder / part).mkdir(exist_ok=True)
    for name in new:
        make_room(folder / name, before.get(name))
        (fresh / name).replace(folder / name)
    write_list(folder, {**kept, **new})


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


def _draw(pictures: Sequence[tuple[Figure, Path]], share: Share | None) -> None:
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
        # What is not there yet was not shared out, or another process failed at it. In the second
        # case the error is raised again here.
        if not path.exists():
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


def _timings(findings: Mapping[str, Findings], origin: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        **({} if origin is None else {"run": origin}),
        "experiments": {
            name: {"numbers": _numbers(found.timings)} for name, found in findings.items()
        },
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
