"""The cost of curvatures: the full profile, the leading ones, and memory."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import curvature_peers
from benchmarks.counting import count_passes
from benchmarks.curvature_peers import measure_curvature_peers
from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.geometry import (
    Boundary,
    boundary_points,
    leading_curvatures,
    mean_hessian,
    principal_curvatures,
)
from robustness_geometry.geometry.surface import Surface, axes_of

__all__ = [
    "measure_curvature",
    "measure_leading",
    "measure_memory",
    "measure_profile",
    "paragraphs",
]

Plain = Mapping[str, Any]

BATCHES = (32, 128, 512, 2048)
"""Batch sizes of the plain gradients; the fastest one counts."""

COUNT = 10
"""Number of leading curvatures."""

FEW, MANY = 2, 6
"""Numbers of images of the two mean Hessians whose memory is compared."""


def measure_curvature(model: nn.Module, images: Tensor, *, repeats: int) -> dict[str, object]:
    """Profile and memory on ``model``, leading curvatures on random networks."""
    return {
        "profile": measure_profile(model, images[:1], repeats=repeats),
        "leading": measure_leading(images.device),
        "memory": measure_memory(model, images[:MANY]),
        "peers": _measure_peers(images.device),
    }


def _measure_peers(device: torch.device, side: int = 12) -> dict[str, object]:
    """Curvatures on a random softplus network beside other libraries."""
    model = _network(nn.Softplus(beta=10), side).to(device, torch.float64)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, side, side, generator=generator, dtype=torch.float64)
    return measure_curvature_peers(model, image.to(device))


def measure_profile(model: nn.Module, image: Tensor, *, repeats: int) -> dict[str, object]:
    """The time of one Hessian beside that of as many plain gradients at the same points.

    Args:
        model: the network.
        image: (1, C, H, W).
        repeats: number of timed rounds, after one that is thrown away.
    """
    point = boundary_points(model, image)
    d = image.numel()
    surface = Surface.checked(
        model,
        point.points,
        point.labels,
        point.targets,
        h=None,
        exact=False,
        output="logits",
        tolerance=None,
        at_once=None,
    )
    axes = torch.eye(d, device=image.device).view(d, *image.shape[1:])
    around = torch.cat(
        [point.points + surface.stencil.h * axes, point.points - surface.stencil.h * axes]
    )
    basis = axes_of("spread", image)
    tangent = surface.hessian(basis)[1:, 1:]
    runs: dict[str, Callable[[], object]] = {
        f"plain, {batch} at once": partial(_plain, model, around, point, batch) for batch in BATCHES
    }
    runs["Hessian"] = partial(surface.hessian, basis)
    runs["eigenvalues"] = partial(torch.linalg.eigvalsh, tangent)
    seconds = paired_seconds(runs, repeats, image.device)
    fastest = min(
        (name for name in runs if name.startswith("plain")),
        key=lambda name: spread(seconds[name])["median"],
    )
    return {
        "dimension": d,
        "gradients": 2 * d,
        "fastest_plain": fastest,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "share_of_plain_rate": spread(ratios(seconds[fastest], seconds["Hessian"])),
    }


def _plain(model: nn.Module, points: Tensor, pair: Boundary, batch: int) -> None:
    """Plain autograd: the gradients of f_target - f_label at ``points``."""
    for part in points.split(batch):
        leaf = part.detach().requires_grad_()
        logits = model(leaf)
        torch.autograd.grad(
            (logits[:, int(pair.targets)] - logits[:, int(pair.labels)]).sum(), leaf
        )


def measure_leading(device: torch.device, side: int = 32) -> dict[str, object]:
    """Gradients and values of the ten leading curvatures beside those of the full profile.

    The images have d = 3 side^2 dimensions. On a softplus network, in float64 at h = 1e-3, both
    give the same values; on the same network with ReLUs, in float32 at the default h, finite
    differences are no linear function of the direction, and the gap is reported.
    """
    found: dict[str, object] = {"dimension": 3 * side * side, "count": COUNT}
    cases: tuple[tuple[str, nn.Module, torch.dtype, float | None], ...] = (
        ("softplus", nn.Softplus(beta=10), torch.float64, 1e-3),
        ("relu", nn.ReLU(), torch.float32, None),
    )
    for name, unit, dtype, h in cases:
        model = _network(unit, side).to(device, dtype)
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(
            device, dtype
        )
        point = boundary_points(model, image)
        z, own, other = point.points, point.labels, point.targets
        with count_passes(model) as few:
            leading = leading_curvatures(
                model, z, labels=own, targets=other, h=h, count=COUNT
            ).values[0]
        with count_passes(model) as many:
            full = principal_curvatures(model, z, labels=own, targets=other, h=h).values[0, :COUNT]
        found[name] = {
            "gradients": few.backward,
            "full_gradients": many.backward,
            "share": few.backward / many.backward,
            "largest_gap": float((leading / full - 1).abs().max()),
            "not_found": int(leading.isnan().sum()),
        }
    return found


def _network(unit: nn.Module, side: int) -> nn.Module:
    """A random convolutional network of 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3, stride=2),
            unit,
            nn.Conv2d(8, 16, 3, stride=2),
            unit,
            nn.Flatten(),
        ]
        width = 16 * ((side - 3) // 4) ** 2
        return nn.Sequential(*layers, nn.Linear(width, 64), unit, nn.Linear(64, 10)).eval()


def measure_memory(model: nn.Module, images: Tensor) -> dict[str, object]:
    """The rise of the mean Hessian's peak memory from few images to more."""
    points = boundary_points(model, images).found()
    counts = [min(FEW, len(points)), len(points)]

    def mean(count: int) -> None:
        some = points.select(torch.arange(count, device=images.device))
        mean_hessian(model, some.points, labels=some.labels, targets=some.targets)

    mean(counts[0])  # the first call loads what later ones share
    few, many = (_peak(partial(mean, count), images.device) for count in counts)
    d = images[0].numel()
    return {"images": counts, "rise_mib": (many - few) / 2**20, "hessian_mib": 8 * d * d / 2**20}


def _peak(action: Callable[[], object], device: torch.device) -> int:
    """Peak memory during ``action`` on the GPU, or of this process, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    action()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def paragraphs(results: Plain) -> list[str]:
    """The measurements as lines of Markdown."""
    profile, leading, memory = results["profile"], results["leading"], results["memory"]
    share, seconds = profile["share_of_plain_rate"], profile["seconds"]
    smooth, jagged = leading["softplus"], leading["relu"]
    return [
        "## Curvature",
        "",
        f"The full profile of one image, d = {profile['dimension']}: its {profile['gradients']} "
        "gradients come at "
        f"**{share['median']:.0%}** ({share['min']:.0%} to {share['max']:.0%}) of the rate of "
        "plain batched gradients "
        f"at the same points ({profile['fastest_plain']}, the fastest of {len(BATCHES)} batch "
        "sizes), in "
        f"{seconds['Hessian']['median']:.2f} s; the eigenvalues take "
        f"{seconds['eigenvalues']['median']:.2f} s more.",
        "",
        f"The {leading['count']} largest curvatures at d = {leading['dimension']} take "
        f"{smooth['gradients']} "
        f"gradients, **1/{1 / smooth['share']:.1f}** of the full profile's "
        f"{smooth['full_gradients']}. On a softplus "
        f"network they differ from it by at most {smooth['largest_gap']:.1e} of their size; with "
        "ReLUs in its place "
        f"({jagged['gradients']} gradients) by up to {jagged['largest_gap']:.0%}, as differences "
        "over a finite length "
        f"are no linear function of the direction there.",
        "",
        f"From {memory['images'][0]} to {memory['images'][1]} images the peak memory of the mean "
        "Hessian rises by "
        f"{memory['rise_mib']:.1f} MiB; one Hessian has {memory['hessian_mib']:.1f} MiB.",
        *(["", *curvature_peers.paragraphs(results["peers"])] if "peers" in results else []),
    ]
