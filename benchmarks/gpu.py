"""Speed and memory on a GPU, and its agreement with the CPU: ``python -m benchmarks.gpu [--small] [--out FILE.json]``.

Nothing is downloaded: the networks have random weights and the images are random and smooth.
"""

import argparse
import copy
import gc
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import Subject
from benchmarks.counting import Passes, count_passes
from benchmarks.cure import CURE, EPS, OBJECTIVES, PGD, PLAIN, STEPS, H, fresh, training_step
from benchmarks.machine import describe, slug
from benchmarks.peers import PEERS, Peer
from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.attacks import deepfool
from robustness_geometry.geometry import (
    Boundary,
    Curvatures,
    MeanCurvature,
    boundary_points,
    leading_curvatures,
    mean_curvature,
    principal_curvatures,
)
from robustness_geometry.geometry.normals import passes_at_once
from robustness_geometry.models import resnet18, torchvision_model
from robustness_geometry.norms import norms
from robustness_geometry.training import cure_penalty
from robustness_geometry.types import Perturbed, predict

__all__ = [
    "FULL",
    "SMALL",
    "Limits",
    "Size",
    "main",
    "markdown",
    "measure",
    "network",
    "smooth_images",
]

Plain = Mapping[str, Any]
RESULTS = Path(__file__).parent / "results"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRUNE, EVERY, SEARCH = "deepfool, prune=2", "deepfool, prune=None", "boundary_points"
PENALTY, GRADIENTS = "cure_penalty and its gradient", "plain gradients"
LIMIT = 1e-3
"""Largest relative difference of a norm between GPU and CPU that counts as agreement."""

SAMPLES = 10
"""Directions of a mean curvature."""

BRANCH, SPREAD = 0.25, 2.0
"""Weight of the residual branches, and standard deviation of the classes' mean logits in those of the images.

With them DeepFool takes about as many steps, of about the length, as on trained networks; without,
a random network is so sensitive to its input that rounding decides where its nearest boundary is.
"""

LEGEND = (
    "ResNets with random weights and the batch statistics of random images, on random smooth images. The rows of one "
    "block take turns, round after round; time is the median over the rounds (minimum to maximum), after a first call "
    "in which passes and memory are measured; a ratio is that of two times of one round. `first` marks the time of "
    "the first call alone. Peak is all that PyTorch had allocated at once on the card, the networks and what the rows "
    "before keep included. Forward and backward are passes an image; plain gradients come at most 512 at once, where "
    "curvatures take more of small images. Beside the peers, DeepFool is the variant `overshot` clipped to [0, 1], "
    "which they compute too. TF32 stands for both matrix products and convolutions."
)


@dataclass(frozen=True)
class Size:
    """What is measured on one network.

    Attributes:
        name: of the network, for the tables.
        build: the network's function, called as those of ``robustness_geometry.models``.
        side: height and width of the images, in pixels.
        classes: number of logits.
        images: attacked at once.
        candidates: classes that take part in DeepFool, foolbox's ten, where all are too many; None:
            all.
        few: images attacked with all classes where ``candidates`` is given; adv-lib knows nothing
            else.
        compared: images whose norms are compared with the CPU's.
        trained: images of a training step.
        curved: boundary points whose mean curvature is taken.
        leading: largest curvatures that are computed, at one point.
        profile: whether all principal curvatures are computed too, at one point.
        branch: how the names of the batch normalisations end that end a residual branch.
    """

    name: str
    build: Callable[..., nn.Module]
    side: int
    classes: int
    images: int
    candidates: int | None
    few: int
    compared: int
    trained: int
    curved: int
    leading: int
    profile: bool
    branch: str


RESNET50 = partial(torchvision_model, name="resnet50", weights=None)
FULL = (
    Size(
        name="ResNet-18, 32x32", build=resnet18, side=32, classes=10, images=128, candidates=None, few=0,
        compared=16, trained=128, curved=16, leading=10, profile=True, branch="body.4",
    ),
    Size(
        name="ResNet-50, 224x224", build=RESNET50, side=224, classes=1000, images=16, candidates=10, few=2,
        compared=4, trained=32, curved=4, leading=10, profile=False, branch="bn3",
    ),
)  # fmt: skip
TINY = partial(torchvision_model, name="resnet18", weights=None)
SMALL = (
    Size(
        name="ResNet-18 of width 8, 8x8", build=partial(resnet18, width=8), side=8, classes=10, images=4,
        candidates=None, few=0, compared=2, trained=4, curved=2, leading=2, profile=True, branch="body.4",
    ),
    Size(
        name="ResNet-18 of torchvision, 32x32", build=TINY, side=32, classes=12, images=2, candidates=10, few=1,
        compared=2, trained=2, curved=1, leading=2, profile=False, branch="bn2",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        seconds: after which nothing new is started.
        rounds: timed rounds of a block, at most.
        block: seconds for the rounds of one block; one round is always taken.
    """

    seconds: float = 280.0
    rounds: int = 5
    block: float = 10.0


@dataclass(frozen=True)
class Contestant:
    """One row.

    Attributes:
        name: what is measured.
        images: how many images or points it takes.
        run: does it.
        judge: what ``run`` returned -> ``mean_norm``, ``success`` or ``value``.
        model: the network, where its passes are to be counted.
    """

    name: str
    images: int
    run: Callable[[], Any]
    judge: Callable[[Any], Plain] = lambda _: {}
    model: nn.Module | None = None


@dataclass(frozen=True)
class Block:
    """Rows that take turns.

    Attributes:
        contestants: the rows.
        references: names of rows that the times of all are divided by.
        once: whether the first call is all that there is time for.
    """

    contestants: Sequence[Contestant]
    references: Sequence[str]
    once: bool = False


class Record:
    """The results so far, written anew after every row.

    Args:
        target: the JSON file, beside which the table is written; None: nothing is written.
        limits: how long to measure.
        about: machine and settings.
    """

    def __init__(self, target: Path | None, limits: Limits, about: Plain) -> None:
        self.target, self.limits, self.start = target, limits, time.monotonic()
        self.results: dict[str, Any] = {**about, "rows": [], "agreement": [], "skipped": []}

    @property
    def left(self) -> float:
        """Seconds in which something may still be started."""
        return self.limits.seconds - (time.monotonic() - self.start)

    def add(self, kind: str, entry: Any) -> None:
        """Append to ``rows``, ``agreement`` or ``skipped``, and write."""
        self.results[kind].append(entry)
        self.write()

    def write(self) -> None:
        """Replace both files, each in one move, so that a run that is cut off leaves whole ones."""
        self.results["seconds"] = time.monotonic() - self.start
        if self.target is not None:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            texts = {
                ".json": json.dumps(self.results, indent=1) + "\n",
                ".md": markdown(self.results),
            }
            for suffix, text in texts.items():
                part = self.target.with_suffix(suffix + ".part")
                part.write_text(text)
                part.replace(self.target.with_suffix(suffix))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write them with the raw figures; returns 2 where there is no GPU to measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to see that it runs; also without a GPU"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; the default is benchmarks/results/<card>.json"
    )
    parser.add_argument(
        "--seconds", type=float, default=Limits.seconds, help="after which nothing new is started"
    )
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.small:
        print("a GPU is needed; --small runs without one", file=sys.stderr)
        return 2
    sizes = SMALL if options.small else FULL
    limits = (
        Limits(options.seconds, rounds=1, block=0.0) if options.small else Limits(options.seconds)
    )
    about = {"machine": _machine(device), "settings": _settings(sizes, limits)}
    default = None if options.small else RESULTS / f"{slug(about['machine']['device'])}.json"
    record = Record(options.out or default, limits, about)
    measure(sizes, device, record)
    print(markdown(record.results))
    if record.target is not None:
        print(f"written: {record.target} and .md")
    return 0


def measure(sizes: Sequence[Size], device: torch.device, record: Record) -> None:
    """Measure everything in single precision, then the speed in TF32 on a GPU, then what takes longest."""
    bases: list[tuple[Size, Subject, Boundary]] = []
    with _precision("fp32"):
        for size in sizes:
            what = f"{size.name}: network, and all that is measured on it"
            _attempt(record, what, partial(_base, size, device, bases))
        for size, subject, points in bases:
            _attempt(record, f"{size.name}: agreement", partial(_agreement, size, subject, record))
            _blocks(size, subject, points, "fp32", record)
    for precision in _precisions(device)[1:]:
        with _precision(precision):
            for size, subject, points in bases:
                _blocks(size, subject, points, precision, record)
    with _precision("fp32"):
        for size, subject, _ in bases:
            if size.candidates is not None:
                make = partial(_all_classes, size, subject)
                _attempt(
                    record,
                    f"{size.name}, fp32: all classes",
                    partial(_run, size, "fp32", make, record),
                )
    record.write()


def _base(size: Size, device: torch.device, bases: list[tuple[Size, Subject, Boundary]]) -> None:
    """Append the network with the images to attack, and the boundary points whose curvature is measured."""
    model = network(size, device)
    subject = Subject.of(model, smooth_images(size.images, size.side, device, seed=1))
    few = subject.first(size.curved)
    points = boundary_points(
        model, few.images, attack=_leading_out(size), labels=few.labels, refinements=2
    )
    bases.append((size, subject, points.found()))


def _blocks(size: Size, subject: Subject, points: Boundary, precision: str, record: Record) -> None:
    makers: dict[str, Callable[[], Block]] = {
        "DeepFool": partial(_deepfool, size, subject),
        "boundary": partial(_boundary, size, subject),
        "training": partial(_training, size, subject),
        "curvature": partial(_curvature, size, subject.model, points),
    }
    for title, make in makers.items():
        what = f"{size.name}, {precision}: {title}"
        _attempt(record, what, partial(_run, size, precision, make, record))


def _attempt(record: Record, what: str, action: Callable[[], None]) -> None:
    """Do something unless it is too late; note why it was not done."""
    if record.left <= 0:
        record.add("skipped", f"{what}: out of time")
        return
    print(f"measuring: {what} ({record.left:.0f} s left)", file=sys.stderr, flush=True)
    try:
        action()
    except Exception as error:  # whatever it is, the other measurements go on
        record.add("skipped", f"{what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] + f" ({type(error).__name__})"


def network(size: Size, device: torch.device) -> nn.Module:
    """The network of ``size`` with random weights that are the same on every device, in evaluation mode.

    Batch normalisation has the statistics of random images; see ``BRANCH`` and ``SPREAD`` for the
    rest.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sides = (size.side, size.side)
        model = size.build(channels=3, size=sides, classes=size.classes, mean=MEAN, std=STD).to(
            device
        )
        offsets = torch.randn(size.classes).to(device)
    images = smooth_images(64, size.side, device, seed=0)
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }
    with torch.no_grad():
        for name, layer in layers.items():
            layer.momentum = 1.0
            if name.endswith(size.branch):
                layer.weight.fill_(BRANCH)
        model.train()(images)
        for layer in layers.values():
            layer.momentum = 0.1
        logits = model.eval()(images)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        last.bias.add_(SPREAD * logits.std(dim=0).mean() * offsets - logits.mean(dim=0))
    return model.requires_grad_(False)


def smooth_images(count: int, side: int, device: torch.device, *, seed: int) -> Tensor:
    """Random images (count, 3, side, side) in [0, 1], the same on every device: 8x8 random pixels, interpolated."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (
        nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1).to(device)
    )


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Single precision with TF32 in matrix products and convolutions, or without."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _run(size: Size, precision: str, make: Callable[[], Block], record: Record) -> None:
    """Measure one block: a first call of each row, then rounds in turns."""
    block = make()
    rows: dict[str, dict[str, Any]] = {}
    slowest = 0.0
    for each in block.contestants:
        if record.left < slowest:  # the next may take as long as the slowest before
            record.add("skipped", f"{size.name}, {precision}: {each.name}: out of time")
            continue
        rows[each.name] = {
            "name": each.name,
            "network": size.name,
            "precision": precision,
            "images": each.images,
        }
        rows[each.name] |= _first(each)
        slowest = max(slowest, rows[each.name].get("first_seconds", 0.0))
        record.add("rows", rows[each.name])
    able = [each for each in block.contestants if "first_seconds" in rows.get(each.name, {})]
    needed = sum(rows[each.name]["first_seconds"] for each in able)
    if able and not block.once and needed <= record.left:
        _rounds(able, rows, block.references, record)


def _first(each: Contestant) -> dict[str, Any]:
    """Time, memory and passes of a first call, and what it found; or why there is none."""
    device = _device()
    if device.type == "cuda":
        gc.collect()  # what the rows before have left in cycles would count
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    start = time.perf_counter()
    try:
        with nullcontext(Passes()) if each.model is None else count_passes(each.model) as passes:
            found = each.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (
        Exception
    ) as error:  # an option that is not there, a library that does not import, too little memory
        return {"failed": _reason(error)}
    row: dict[str, Any] = {"first_seconds": time.perf_counter() - start}
    if held is not None:
        row |= {
            "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20,
            "held_mib": held / 2**20,
        }
    if each.model is not None:
        row |= {"forward": passes.forward / each.images, "backward": passes.backward / each.images}
    return {**row, **each.judge(found)}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rounds(
    able: Sequence[Contestant],
    rows: Mapping[str, dict[str, Any]],
    references: Sequence[str],
    record: Record,
) -> None:
    """As many rounds as there is time for; their seconds and ratios go into ``rows``."""
    runs = {each.name: each.run for each in able}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + min(record.limits.block, record.left)
    while not seconds[able[0].name] or (
        time.monotonic() < end and len(seconds[able[0].name]) < record.limits.rounds
    ):
        names = list(runs)
        shift = len(seconds[names[0]]) % len(names)
        turned = {name: runs[name] for name in names[shift:] + names[:shift]}
        for name, found in paired_seconds(turned, 1, _device(), warm=True).items():
            seconds[name] += found
    for name, own in seconds.items():
        rows[name]["seconds"], rows[name]["rounds"] = spread(own), len(own)
        rows[name]["ratio"] = {
            other: spread(ratios(own, seconds[other])) for other in references if other in seconds
        }
    record.write()


def _deepfool(size: Size, subject: Subject) -> Block:
    """DeepFool with and without pruning beside the peers that take as many classes."""
    peers = [
        peer
        for peer in PEERS
        if peer.name == "foolbox" or (peer.name == "adv-lib" and size.candidates is None)
    ]
    return Block(_attacks(subject, size.candidates, peers), [PRUNE])


def _all_classes(size: Size, subject: Subject) -> Block:
    """The same with all classes, for the images of the fewest steps; without pruning this takes very long."""
    model, images, labels = subject.model, subject.images, subject.labels
    steps = deepfool(model, images, labels=labels, prune=2.0, candidates=size.candidates).steps
    easy = steps.argsort()[: size.few]
    found = Subject(model, images[easy], labels[easy])
    return Block(
        _attacks(found, None, [peer for peer in PEERS if peer.name == "adv-lib"]),
        [PRUNE],
        once=True,
    )


def _attacks(subject: Subject, candidates: int | None, peers: Sequence[Peer]) -> list[Contestant]:
    model, images, labels = subject.model, subject.images, subject.labels
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, prune in ((PRUNE, 2.0), (EVERY, None)):
        runs[name] = partial(_ours, subject, prune, candidates)
    for peer in peers:
        name = f"{peer.name} {peer.version}" if peer.installed else peer.name
        runs[name] = (
            partial(peer.attack, model, images, labels, True)
            if peer.installed
            else partial(_missing, peer)
        )
    return [
        Contestant(name, len(images), run, partial(_fooled, subject), model)
        for name, run in runs.items()
    ]


def _ours(subject: Subject, prune: float | None, candidates: int | None) -> Tensor:
    found: Perturbed = deepfool(
        subject.model, subject.images, labels=subject.labels,
        variant="overshot", clip=(0.0, 1.0), prune=prune, candidates=candidates,
    )  # fmt: skip
    return found.adversarial(subject.images)


def _missing(peer: Peer) -> Tensor:
    raise ModuleNotFoundError(f"{peer.distribution} is not installed")


def _fooled(subject: Subject, adversarial: Tensor) -> dict[str, float]:
    moved = predict(subject.model, adversarial) != subject.labels
    lengths = norms(adversarial - subject.images)
    return {"mean_norm": float(lengths.mean()), "success": float(moved.double().mean())}


def _leading_out(size: Size) -> Callable[..., Perturbed]:
    return partial(deepfool, prune=2.0, candidates=size.candidates)


def _boundary(size: Size, subject: Subject) -> Block:
    """The search of the nearest boundary point beside the attack that it starts from."""
    model, images, labels = subject.model, subject.images, subject.labels
    attack = _leading_out(size)
    runs: dict[str, Callable[[], Perturbed | Boundary]] = {
        "deepfool, unclipped, prune=2": partial(attack, model, images, labels=labels),
        SEARCH: partial(boundary_points, model, images, attack=attack, labels=labels),
    }
    rows = [Contestant(name, len(images), run, _near, model) for name, run in runs.items()]
    return Block(rows, [rows[0].name])


def _near(found: Perturbed | Boundary) -> dict[str, float | None]:
    lengths = norms(found.perturbations[found.success])
    return {"mean_norm": _mean(lengths), "success": float(found.success.double().mean())}


def _training(size: Size, subject: Subject) -> Block:
    """A step of plain, CURE and PGD training, and CURE's penalty with its gradient by the weights."""
    images = smooth_images(size.trained, size.side, subject.images.device, seed=2)
    labels = predict(subject.model, images)
    rows = [
        Contestant(
            name,
            len(images),
            partial(training_step, *fresh(subject.model), images, labels, objective),
        )
        for name, objective in OBJECTIVES.items()
    ]
    penalty = partial(_penalty, fresh(subject.model)[0], images, labels)
    return Block(
        [*rows, Contestant(PENALTY, len(images), penalty, lambda value: {"value": value})],
        [PLAIN, PGD],
    )


def _penalty(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.zero_grad(set_to_none=True)
    value = cure_penalty(model, images, labels, h=H)
    value.backward()
    return float(value.detach())


def _curvature(size: Size, model: nn.Module, points: Boundary) -> Block:
    """Curvatures beside plain gradients at as many points as the first of them takes, at most.

    The points were found in single precision; in TF32 they need not lie on the boundary as closely
    as usual.
    """
    if not len(points):
        raise ValueError("no boundary point was found")
    one = points.select(torch.zeros(1, dtype=torch.int64, device=points.labels.device))
    count = 2 * (one.points.numel() if size.profile else 15 * size.leading)
    rows = [Contestant(GRADIENTS, 1, partial(_gradients, model, one, count), model=model)]
    if size.profile:
        rows.append(
            Contestant(
                "principal_curvatures", 1, _at(principal_curvatures, model, one), _bent, model
            )
        )
    leading = _at(leading_curvatures, model, one, count=size.leading)
    mean = _at(mean_curvature, model, points, samples=SAMPLES)
    rows.append(Contestant(f"leading_curvatures, count={size.leading}", 1, leading, _bent, model))
    rows.append(Contestant(f"mean_curvature, samples={SAMPLES}", len(points), mean, _bent, model))
    return Block(rows, [GRADIENTS])


def _at(
    function: Callable[..., Any], model: nn.Module, points: Boundary, **options: Any
) -> Callable[[], Any]:
    classes = {"labels": points.labels, "targets": points.targets}
    return partial(function, model, points.points, **classes, tolerance=math.inf, **options)


def _bent(found: Curvatures | MeanCurvature) -> dict[str, float | None]:
    """The average over the points of the largest, or of the mean curvature, and the share that was found."""
    known = torch.isfinite(found.values)
    first = found.values if isinstance(found, MeanCurvature) else found.values[:, 0]
    return {"value": _mean(first[torch.isfinite(first)]), "success": float(known.double().mean())}


def _gradients(model: nn.Module, point: Boundary, count: int) -> None:
    """``count`` gradients of f_target - f_label at the point, as many at once as the curvatures, at most 512."""
    size = min(512, passes_at_once(point.points, None, model))
    for start in range(0, count, size):
        repeated = point.points.expand(min(size, count - start), -1, -1, -1)
        leaf = repeated.clone().requires_grad_()
        logits = model(leaf)
        torch.autograd.grad(
            (logits[:, int(point.targets)] - logits[:, int(point.labels)]).sum(), leaf
        )


def _agreement(size: Size, subject: Subject, record: Record) -> None:
    """The norms that DeepFool and the boundary search find on the device and, in single precision, on the CPU."""
    here = subject.first(size.compared)
    there = Subject(copy.deepcopy(here.model).cpu(), here.images.cpu(), here.labels.cpu())
    attack = _leading_out(size)
    searches: dict[str, Callable[..., Perturbed | Boundary]] = {
        "deepfool, unclipped, prune=2": attack,
        SEARCH: partial(boundary_points, attack=attack),
    }
    for name, search in searches.items():
        expected = search(there.model, there.images, labels=there.labels)
        for precision in _precisions(here.images.device):
            with _precision(precision):
                found = search(here.model, here.images, labels=here.labels)
            entry = {
                "name": name,
                "network": size.name,
                "precision": precision,
                "images": size.compared,
            }
            record.add("agreement", entry | _difference(found, expected))


def _difference(found: Perturbed | Boundary, expected: Perturbed | Boundary) -> dict[str, Any]:
    """Relative differences of the norms of the images for which both found a perturbation."""
    both = found.success.cpu() & expected.success
    own, other = (norms(part.perturbations.cpu()[both].double()) for part in (found, expected))
    gaps = ((own - other).abs() / other).tolist()
    return {
        "limit": LIMIT,
        "compared": len(gaps),
        "max": max(gaps, default=None),
        "median": statistics.median(gaps) if gaps else None,
        "agree": sum(gap <= LIMIT for gap in gaps) / len(both),
        "same_success": int((found.success.cpu() == expected.success).sum()),
        "mean_norm": _mean(own),
        "cpu_mean_norm": _mean(other),
        "differences": gaps,
    }


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _precisions(device: torch.device) -> tuple[str, ...]:
    return ("fp32", "tf32") if device.type == "cuda" else ("fp32",)


def _machine(device: torch.device) -> dict[str, Any]:
    """Card, driver and versions."""
    found = describe(device)
    found |= {name: metadata.version(name) for name in ("torchvision", "numpy", "scipy")}
    found["peers"] = {peer.name: peer.version for peer in PEERS if peer.installed}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{card.major}.{card.minor}",
            "memory_mib": card.total_memory / 2**20,
        }
    return found


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout.splitlines() or [""])[0] or None


def _settings(sizes: Sequence[Size], limits: Limits) -> dict[str, Any]:
    return {
        "sizes": [
            {key: value for key, value in vars(size).items() if key != "build"} for size in sizes
        ],
        "limits": vars(limits),
        "samples": SAMPLES,
        "branch": BRANCH,
        "spread": SPREAD,
        "dtype": "float32",
        "fp32": "TF32 off in matrix products and convolutions",
        "tf32": "TF32 on in matrix products and convolutions",
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "beside_peers": "variant=overshot, clip=(0, 1)",
        "unclipped": "variant=clean, clip=None, prune=2",
        "pgd": f"eps={EPS}, steps={STEPS}",
        "cure": repr(OBJECTIVES[CURE]),
    }


def markdown(results: Plain) -> str:
    """The tables of a run, whole or cut off."""
    machine = results["machine"]
    versions = [f"torch {machine['torch']}", f"Python {machine['python']}"]
    versions += [f"{key} {machine[key]}" for key in ("driver", "cuda", "cudnn") if machine.get(key)]
    lines = [f"# Speed on {machine['device']}", "", ", ".join(versions) + ".", "", LEGEND]
    lines += [
        "",
        f"## Norms beside those of the CPU, limit {LIMIT:g}",
        "",
        *_agreement_table(results),
    ]
    for place in dict.fromkeys((row["network"], row["precision"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["network"], row["precision"]) == place]
        lines += ["", f"## {place[0]}, {place[1]}", "", *_speed_table(rows)]
    if results["skipped"]:
        lines += ["", "## Not measured", "", *[f"- {what}" for what in results["skipped"]]]
    return "\n".join([*lines, ""])


def _agreement_table(results: Plain) -> list[str]:
    lines = [
        "| network | precision | what | images | found on both | median | largest | within the limit |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in results["agreement"]:
        gaps = [_number(row[key], ".1e") for key in ("median", "max")]
        cells = [
            *(str(row[key]) for key in ("network", "precision", "name", "images", "compared")),
            *gaps,
        ]
        cells.append(f"{row['agree']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _speed_table(rows: Sequence[Plain]) -> list[str]:
    lines = [
        "| what | images | seconds | time / reference | forward | backward | peak MiB | mean norm | success |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["name"], str(row["images"]), _seconds(row), _ratios(row)]
        for key, style in (
            ("forward", ".1f"), ("backward", ".1f"), ("peak_mib", ".0f"), ("mean_norm", ".4g"), ("success", ".0%"),
        ):  # fmt: skip
            cells.append(_number(row.get(key), style))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _seconds(row: Plain) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "seconds" not in row:
        return f"{row['first_seconds']:.3g} (first)"
    return "{median:.3g} ({min:.3g} to {max:.3g})".format(**row["seconds"])


def _ratios(row: Plain) -> str:
    return ", ".join(
        f"{found['median']:.2f} of {other}" for other, found in row.get("ratio", {}).items()
    )


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


if __name__ == "__main__":
    sys.exit(main())
