"""The order of the measurements: single precision, then TF32, then what takes longest."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.comparison import Subject
from benchmarks.gpu.agreement import measure_agreement
from benchmarks.gpu.attacks import all_classes_block, boundary_block, deepfool_block, unclipped
from benchmarks.gpu.blocks import Block, run_block
from benchmarks.gpu.curvature import curvature_block
from benchmarks.gpu.networks import Size, network, precision_of, precisions, smooth_images
from benchmarks.gpu.record import Record, attempt
from benchmarks.gpu.training import training_block
from robustness_geometry.geometry import Boundary, boundary_points

__all__ = ["Base", "measure", "measure_blocks", "prepare"]

Base = tuple[Size, Subject, Boundary]
"""A size, its network with the images to attack, and the points whose curvature is measured."""


def measure(sizes: Sequence[Size], device: torch.device, record: Record) -> None:
    """Measure everything in single precision, then the speed in TF32, then what takes longest.

    Only a GPU has TF32.
    """
    bases: list[Base] = []
    with precision_of("fp32"):
        for size in sizes:
            what = f"{size.name}: network, and all that is measured on it"
            attempt(record, what, partial(_append_base, bases, size, device))
        for base in bases:
            size, subject, _ = base
            what = f"{size.name}: agreement"
            attempt(record, what, partial(measure_agreement, size, subject, record))
            measure_blocks(base, "fp32", record)
    for precision in precisions(device)[1:]:
        with precision_of(precision):
            for base in bases:
                measure_blocks(base, precision, record)
    with precision_of("fp32"):
        for size, subject, _ in bases:
            if size.candidates is not None:
                make = partial(all_classes_block, size, subject)
                run = partial(run_block, size, "fp32", make, record)
                attempt(record, f"{size.name}, fp32: all classes", run)
    record.write()


def _append_base(bases: list[Base], size: Size, device: torch.device) -> None:
    bases.append(prepare(size, device))


def prepare(size: Size, device: torch.device) -> Base:
    """Build the network of ``size``, its images, and the points whose curvature is measured."""
    model = network(size, device)
    subject = Subject.of(model, smooth_images(size.images, size.side, device, seed=1))
    few = subject.first(size.curved)
    points = boundary_points(
        model, few.images, attack=unclipped(size), labels=few.labels, refinements=2
    )
    return size, subject, points.found()


def measure_blocks(base: Base, precision: str, record: Record) -> None:
    """Measure the speed of everything on one network, in one precision."""
    size, subject, points = base
    makers: dict[str, Callable[[], Block]] = {
        "DeepFool": partial(deepfool_block, size, subject),
        "boundary": partial(boundary_block, size, subject),
        "training": partial(training_block, size, subject),
        "curvature": partial(curvature_block, size, subject.model, points),
    }
    for title, make in makers.items():
        run = partial(run_block, size, precision, make, record)
        attempt(record, f"{size.name}, {precision}: {title}", run)
