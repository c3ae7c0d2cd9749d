"""Minimum l2 norm against passes: attacks of this project and its peers on the same digits.

On small networks the gap is to the exact distance, on the others to the best known: the smallest
norm that any of the attacks found at any budget, or a long run of DDN or nearest.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import Subject
from benchmarks.contenders import CONTENDERS, LONG, Contender, Options
from benchmarks.counting import count_passes
from benchmarks.gap_figure import draw
from benchmarks.peers import Box
from pipeline.bootstrap import paired_bootstrap
from pipeline.statistics import Estimate, mean, median, of_means, share
from robustness_geometry.attacks.robust_accuracy import robust_accuracy_area
from robustness_geometry.certify import exact_distance
from robustness_geometry.datasets import mnist5k
from robustness_geometry.models import fc500_150_10, pretrained
from robustness_geometry.norms import norms
from robustness_geometry.training import Recipe, train
from robustness_geometry.types import Dataset, predict

__all__ = [
    "Task",
    "attackbench_rows",
    "document",
    "measure_minimum_norms",
    "measure_task",
    "optimality",
    "small_network",
    "write_figure",
]

Plain = Mapping[str, Any]

NETWORKS = ("mnist5k_lenet", "mnist5k_fc500_150_10", "mnist5k_nin")
BOX: Box = (0.0, 1.0)
HIDDEN = ((24, 24), (50, 50))
"""Hidden units of the small networks."""
BATCH = 100
"""Images at once, the same for all attacks."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Task:
    """Digits and the network on which they are attacked.

    Attributes:
        network: name of the network.
        subject: the network, the images and the labels that it gives to them.
        box: lowest and highest pixel value of the perturbed images, or None.
        exact: (N,) exact distances in float64, or None where they are not known.
        tried: number of images whose exact distance was looked for.
    """

    network: str
    subject: Subject
    box: Box | None
    exact: Tensor | None = None
    tried: int = 0


def measure_minimum_norms(
    device: torch.device, *, images: int = 200, small: int = 40, seconds: float = 4.0
) -> dict[str, object]:
    """Measure all attacks on the suite's networks and on two small ones.

    Args:
        device: where the networks are.
        images: number of held-out digits on each network of the suite.
        small: number of held-out digits whose exact distance is looked for on a small network.
        seconds: time limit of each exact distance.
    """
    data, tasks = mnist5k(), []
    for name in NETWORKS:
        model = pretrained(name).to(device)
        if device.type == "cpu":
            model = model.to(memory_format=torch.channels_last)
        subject = Subject.of(model, data.test.images[:images].to(device))
        tasks.append(measure_task(Task(name, subject, BOX)))
    for hidden in HIDDEN if small else ():
        model = small_network(data, hidden).to(device)
        subject = Subject.of(model, data.test.images[:small].to(device))
        name = "784-" + "-".join(map(str, hidden)) + "-10"
        tasks.append(measure_task(_closed(name, subject, seconds)))
    missing = sorted({str(each.distribution) for each in CONTENDERS if not each.installed})
    return {"networks": tasks, "missing": missing, "batch": BATCH, "seconds": seconds}


def small_network(data: Dataset, hidden: Sequence[int]) -> nn.Module:
    """A fully connected ReLU network whose exact distances can be computed, trained in seconds."""
    pixels = data.train.images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = fc500_150_10(
            channels=pixels.shape[1],
            size=(pixels.shape[2], pixels.shape[3]),
            classes=len(data.classes),
            mean=(float(pixels.mean()),),
            std=(float(pixels.std()),),
            hidden=hidden,
        )
    return train(model, data.train, Recipe(epochs=10)).model


def _closed(name: str, subject: Subject, seconds: float) -> Task:
    """The images whose exact distance was found, unclipped, within ``seconds`` each."""
    found = exact_distance(
        subject.model, subject.images, labels=subject.labels, time_limit=seconds, tolerance=1e-4
    )
    closed = torch.tensor([status == "exact" for status in found.status])
    kept = Subject(subject.model, subject.images[closed], subject.labels[closed])
    return Task(name, kept, None, found.upper[closed], len(closed))


def measure_task(
    task: Task,
    contenders: Iterable[Contender] = CONTENDERS,
    long: Iterable[Contender] = LONG,
) -> dict[str, object]:
    """Run every attack at every budget on one network, and judge it by the references."""
    results: dict[str, object] = {
        "network": task.network,
        "images": len(task.subject.images),
        "box": task.box,
        "reference": "best known" if task.exact is None else "exact",
    }
    if task.exact is not None:
        results["tried"] = task.tried
    if not len(task.subject.images):
        return results | {"rows": []}
    runs = [
        (each, budget, _run(task, each, options))
        for each in contenders
        if each.installed
        for budget, options in each.options.items()
    ]
    best = task.exact
    if best is None:
        extra = [_run(task, each, options) for each in long for options in each.options.values()]
        judged = [run for each, _, run in runs if each.judged]
        best = torch.stack([run["distances"] for run in [*judged, *extra]]).amin(dim=0)
    rows = [_row(task, each, budget, run, best) for each, budget, run in runs]
    found = torch.isfinite(best)
    mean_reference = float(best[found].mean()) if bool(found.any()) else None
    return results | {"mean_reference": mean_reference, "rows": rows}


def _run(task: Task, contender: Contender, options: Options) -> dict[str, Any]:
    """Distances (N,), inf where the attack failed, with passes an image and seconds."""
    subject, count = task.subject, len(task.subject.images)
    parts, start = [], time.perf_counter()
    with torch.random.fork_rng(devices=[]), count_passes(subject.model) as passes:
        torch.manual_seed(0)
        for rows in torch.arange(count).split(BATCH):
            images, labels = subject.images[rows], subject.labels[rows]
            parts.append(contender.attack(subject.model, images, labels, task.box, options))
    seconds = time.perf_counter() - start
    adversarial = torch.cat(parts).detach()
    if task.box is not None:
        adversarial = adversarial.clamp(*task.box)
    moved = predict(subject.model, adversarial) != subject.labels
    sizes = norms(adversarial.double() - subject.images.double()).cpu()
    return {
        "distances": torch.where(moved.cpu(), sizes, torch.inf),
        "forward": passes.forward / count,
        "backward": passes.backward / count,
        "seconds": seconds,
    }


def _row(task: Task, each: Contender, budget: int, run: Plain, best: Tensor) -> dict[str, object]:
    """The numbers of an attack at a budget."""
    distances = run["distances"]
    known, found = torch.isfinite(best), torch.isfinite(distances)
    largest = float(best[known].max()) if bool(known.any()) else 1.0
    gaps = torch.where(found & known, distances / best - 1, torch.nan)
    samples = {
        "gap": gaps,
        "found": found.double(),
        "capped": distances.clamp_max(largest),
        "best": best.clamp_max(largest),
    }
    numbers = paired_bootstrap(
        samples,
        {
            "gap": mean("gap"),
            "median_gap": median("gap"),
            "ASR": share("found"),
            "optimality": of_means(("capped", "best"), partial(_optimality_of, largest)),
        },
        resamples=RESAMPLES,
    )
    intervals = {name: _interval(estimate) for name, estimate in numbers.items()}
    if bool(known.any()):  # the same number, from the curve itself
        intervals["optimality"]["value"] = optimality(distances[known], best[known])
    return {
        "attack": each.name,
        "library": each.library,
        "budget": budget,
        "judged": each.judged,
        "forward": run["forward"],
        "backward": run["backward"],
        "seconds": run["seconds"],
        "mean_norm": float(distances[found].mean()) if bool(found.any()) else None,
        "largest_gap": float(gaps[~gaps.isnan()].max()) if bool(found.any()) else None,
    } | intervals


def _optimality_of(largest: float, area: Tensor, least: Tensor) -> Tensor:
    return (largest - area) / (largest - least)


def _interval(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as plain values, None for what is not known."""
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: value if value == value else None for name, value in values.items()}


def optimality(distances: Tensor, best: Tensor) -> float | None:
    """AttackBench's optimality of an attack: 1 for the best known distances, 0 for none found.

    It is 1 - (A - A*) / (eps0 - A*), where A is the area under the robust accuracy of the attack
    from 0 to eps0, A* that of the best known distances, and eps0 the largest of these. It is None
    where all of these are equal.

    Args:
        distances: (N,) distances of the attack, inf where it failed.
        best: (N,) the best known ones.

    References:
        A. E. Cina et al., "AttackBench: evaluating gradient-based attacks for adversarial
        examples", AAAI 2025, arXiv:2404.19460.
    """
    largest = float(best.max())
    area, least = (
        robust_accuracy_area(each, torch.isfinite(each), largest) for each in (distances, best)
    )
    return (largest - area) / (largest - least) if largest > least else None


def attackbench_rows(results: Plain) -> list[dict[str, object]]:
    """A row for each attack, network and budget with the fields of AttackBench's tables.

    ``time`` is in seconds for all images, ``n_forwards`` and ``n_backwards`` are means over them.
    """
    return [
        {
            "dataset": "mnist5k",
            "attack": row["attack"],
            "library": row["library"],
            "model": network["network"],
            "threat_model": "l2",
            "ASR": row["ASR"]["value"],
            "optimality": row["optimality"]["value"],
            "n_forwards": round(row["forward"], 2),
            "n_backwards": round(row["backward"], 2),
            "time": round(row["seconds"], 3),
            "budget": row["budget"],
        }
        for network in results["networks"]
        for row in network["rows"]
    ]


def write_figure(results: Plain, path: Path) -> None:
    """Draw gap and optimality against passes, as PNG."""
    draw([network for network in results["networks"] if network["rows"]], path)


LEGEND = (
    "All attacks get the same held-out digits, {batch} at once, and leave the label that the "
    "network gives. Passes are images through the network for each image attacked, counted by "
    "hooks; budgets are about 10, 30, 100 and 300 of them, forward and backward together, and an "
    "attack that stops by itself has fewer rows. The gap is distance / reference - 1, mean over "
    "the images that were fooled, with a 95% interval from a bootstrap over images. Optimality is "
    "AttackBench's, which counts failures: the area under the robust accuracy, as it lies between "
    "that of an attack that finds nothing (0) and that of the references (1). Options of other "
    "libraries whose defaults take thousands of passes were chosen on training digits. FMN is "
    "shown, but nobody is judged by it: it fails on many of these digits."
)


def document(results: Plain, figure: str) -> list[str]:
    """The measurements as lines of Markdown, with the file name of their figure."""
    machine = results["machine"]
    load = ", ".join(map(str, machine["load_average"]))
    lines = [
        "# Minimum l2 norm against passes",
        "",
        f"![Gap and optimality against passes]({figure})",
        "",
        LEGEND.format(batch=results["batch"]),
        "",
        f"Times: {machine['device']}, {machine['threads']} of its {machine['cpus']} processors, "
        f"torch {machine['torch']}; load average at the start {load}.",
    ]
    for network in results["networks"]:
        lines += ["", f"## {network['network']}", "", _conditions(network, results["seconds"])]
        if network["rows"]:
            lines += ["", *_table(network["rows"])]
    if results["missing"]:
        lines += ["", "Not installed: " + ", ".join(results["missing"]) + "."]
    return lines


def _conditions(network: Plain, seconds: float) -> str:
    where = "unclipped (libraries that always clip: to [-1, 2])"
    if network["box"] is not None:
        where = "inside [0, 1]"
    text = f"{network['images']} digits, {where}; reference: {network['reference']}"
    if network["reference"] == "exact":
        text += f", closed on these of {network['tried']} digits within {seconds:g} s each"
    if network.get("mean_reference") is not None:
        text += f", mean {network['mean_reference']:.4f}"
    return text + "."


def _table(rows: Sequence[Plain]) -> list[str]:
    header = ("attack", "library", "forward", "backward", "fooled", "mean gap", "median gap")
    cells = [
        (
            row["attack"],
            row["library"],
            f"{row['forward']:.1f}",
            f"{row['backward']:.1f}",
            f"{row['ASR']['value']:.1%}",
            _shown(row["gap"], "%"),
            _percent(row["median_gap"]["value"]),
            _shown(row["optimality"], ""),
            f"{row['seconds']:.2f}",
        )
        for row in sorted(rows, key=lambda row: row["forward"] + row["backward"])
    ]
    return [
        "| " + " | ".join([*header, "optimality", "s"]) + " |",
        "|" + "---|" * (len(header) + 2),
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


def _shown(interval: Plain, sign: str) -> str:
    values = [interval[name] for name in ("value", "low", "high")]
    if values[0] is None:
        return ""
    value, low, high = (
        "?" if each is None else _percent(each) if sign else f"{each:z.3f}" for each in values
    )
    return f"{value} ({low} to {high})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if abs(value) >= 0.1 else f"{value:.2%}"
