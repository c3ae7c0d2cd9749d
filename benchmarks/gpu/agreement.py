"""Agreement of the norms on the device with those on the CPU."""

import copy
import statistics
from typing import Any

from benchmarks.comparison import Subject
from benchmarks.gpu.attacks import searches
from benchmarks.gpu.blocks import average
from benchmarks.gpu.networks import Size, precision_of, precisions
from benchmarks.gpu.record import Record
from benchmarks.gpu.report import LIMIT
from robustness_geometry.geometry import Boundary
from robustness_geometry.norms import norms
from robustness_geometry.types import Perturbed

__all__ = ["measure_agreement"]


def measure_agreement(size: Size, subject: Subject, record: Record) -> None:
    """Compare the norms of DeepFool and of the boundary searches with those on the CPU.

    The device is measured in each of its precisions, the CPU in single precision.
    """
    here = subject.first(size.compared)
    there = Subject(copy.deepcopy(here.model).cpu(), here.images.cpu(), here.labels.cpu())
    for name, search in searches(size).items():
        expected = search(there.model, there.images, labels=there.labels)
        for precision in precisions(here.images.device):
            with precision_of(precision):
                result = search(here.model, here.images, labels=here.labels)
            entry = {
                "name": name,
                "network": size.name,
                "precision": precision,
                "images": size.compared,
            }
            record.add("agreement", entry | _difference(result, expected))


def _difference(result: Perturbed | Boundary, expected: Perturbed | Boundary) -> dict[str, Any]:
    """Relative differences of the norms, over images on which both found a perturbation."""
    both = result.success.cpu() & expected.success
    ours, theirs = (norms(part.perturbations.cpu()[both].double()) for part in (result, expected))
    gaps = ((ours - theirs).abs() / theirs).tolist()
    return {
        "limit": LIMIT,
        "compared": len(gaps),
        "max": max(gaps, default=None),
        "median": statistics.median(gaps) if gaps else None,
        "agree": sum(gap <= LIMIT for gap in gaps) / len(both),
        "same_success": int((result.success.cpu() == expected.success).sum()),
        "mean_norm": average(ours),
        "cpu_mean_norm": average(theirs),
        "differences": gaps,
    }
