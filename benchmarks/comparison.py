"""l2 DeepFool of this project and of its peers, on the same images in the same run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bound import JACOBIANS, active_images, jacobians
from benchmarks.counting import count_passes
from benchmarks.peers import PEERS, Peer
from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.attacks import deepfool
from robustness_geometry.norms import norms
from robustness_geometry.types import Perturbed, predict

__all__ = ["OURS", "Row", "Subject", "compare", "fastest_batches", "measure_bound"]

OURS = "this project"
EVERY = "this project, prune=None"
PRUNED = "this project, prune=2"
CLEAN = "this project, variant=clean"
Spread = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """A network and the images on which it is attacked.

    Attributes:
        model: the network.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) labels that the network gives to them.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: Tensor) -> "Subject":
        """The network with the labels that it gives to ``images``."""
        return cls(model, images, predict(model, images))

    def first(self, count: int) -> "Subject":
        """The first ``count`` images."""
        return Subject(self.model, self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Row:
    """One library on one set of images.

    Attributes:
        name: library and version.
        images: number of images that it was measured on.
        batch: number of images at once, the fastest of those tried.
        seconds: time for all images, spread over the rounds.
        images_per_second: images per second at the median time.
        ratio: its time over ours in the same round, on the same images; spread over the rounds.
        forward: forward passes per image.
        backward: backward passes per image.
        mean_norm: mean l2 norm of the perturbations.
        success: share of images whose label changed.
        note: options and adaptations.
    """

    name: str
    images: int
    batch: int
    seconds: Spread
    images_per_second: float
    ratio: Spread
    forward: float
    backward: float
    mean_norm: float
    success: float
    note: str

    def as_dict(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def fastest_batches(subject: Subject) -> dict[str, int]:
    """The batch size with which each library is fastest, without clipping.

    All images at once, a quarter and a sixteenth of them are tried. Libraries that are measured on
    few images take them all at once.
    """
    fast = [peer for peer in PEERS if peer.installed and peer.images is None]
    contestants: dict[str, Attack] = {OURS: partial(_ours, clip=False)}
    contestants |= {peer.name: partial(_theirs, peer, clip=False) for peer in fast}
    return {name: _fastest_batch(attack, subject) for name, attack in contestants.items()}


def _fastest_batch(attack: Attack, subject: Subject) -> int:
    count = len(subject.images)
    tried = {str(size): size for size in sorted({max(1, count // share) for share in (1, 4, 16)})}
    runs = {text: partial(_in_batches, attack, subject, size) for text, size in tried.items()}
    _in_batches(attack, subject.first(min(tried.values())), count)  # the first call is always slow
    seconds = paired_seconds(runs, 1, subject.images.device, warm=True)
    return tried[min(tried, key=lambda text: seconds[text][0])]


def compare(
    subject: Subject,
    batches: Mapping[str, int],
    *,
    clip: bool,
    repeats: int,
    peers: Sequence[Peer] = PEERS,
) -> list[Row]:
    """Measure the installed peers beside this project, slow peers on fewer images.

    Args:
        subject: network and images.
        batches: library -> number of images at once; a library without an entry takes all.
        clip: whether the perturbed images stay inside [0, 1].
        repeats: number of timed rounds, after one in which the passes are counted.
        peers: the libraries beside which it is measured.
    """
    groups: dict[int, list[Peer]] = {}
    for peer in peers:
        if peer.installed:
            count = min(peer.images or len(subject.images), len(subject.images))
            groups.setdefault(count, []).append(peer)
    rows: list[Row] = []
    for count, group in groups.items() or [(len(subject.images), [])]:
        rows += _compare_group(subject.first(count), group, batches, clip, repeats)
    return rows


def _compare_group(
    subject: Subject, peers: list[Peer], batches: Mapping[str, int], clip: bool, repeats: int
) -> list[Row]:
    attacks: dict[str, Attack] = {
        OURS: partial(_ours, clip=clip),
        EVERY: partial(_ours, clip=clip, prune=None),
        PRUNED: partial(_ours, clip=clip, prune=2.0),
        CLEAN: partial(_ours, clip=clip, variant="clean"),
    }
    attacks |= {peer.name: partial(_theirs, peer, clip=clip) for peer in peers}
    batches = {**batches, **dict.fromkeys((EVERY, PRUNED, CLEAN), batches[OURS])}
    sizes = {
        name: min(batches.get(name, len(subject.images)), len(subject.images)) for name in attacks
    }
    untimed = {name: _outcome(attack, subject, sizes[name]) for name, attack in attacks.items()}
    runs = {
        name: partial(_in_batches, attack, subject, sizes[name]) for name, attack in attacks.items()
    }
    seconds = paired_seconds(runs, repeats, subject.images.device, warm=True)
    names = {peer.name: f"{peer.name} {peer.version}" for peer in peers}
    notes = {peer.name: "its own clipping" if clip else peer.unclipped for peer in peers}
    notes |= {
        OURS: "variant=overshot, the one of foolbox and adv-lib; prune=auto, the default",
        EVERY: "variant=overshot; the gradients of all classes",
        PRUNED: "variant=overshot",
        CLEAN: "the default",
    }
    return [
        Row(
            name=names.get(name, name),
            images=len(subject.images),
            batch=sizes[name],
            seconds=spread(own),
            images_per_second=len(subject.images) / spread(own)["median"],
            ratio=spread(ratios(own, seconds[OURS])),
            note=notes[name],
            **untimed[name],
        )
        for name, own in seconds.items()
    ]


def _outcome(attack: Attack, subject: Subject, batch: int) -> dict[str, float]:
    """Passes, norm and success of an attack: all but its time."""
    count = len(subject.images)
    with count_passes(subject.model) as passes:
        adversarial = _in_batches(attack, subject, batch)
    moved = predict(subject.model, adversarial) != subject.labels
    return {
        "forward": passes.forward / count,
        "backward": passes.backward / count,
        "mean_norm": float(norms(adversarial - subject.images).mean()),
        "success": float(moved.double().mean()),
    }


def _ours(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    clip: bool,
    variant: str = "overshot",
    prune: float | str | None = "auto",
) -> Tensor:
    box = (0.0, 1.0) if clip else None
    found: Perturbed = deepfool(
        model, images, labels=labels, clip=box, variant=variant, prune=prune
    )
    return found.adversarial(images)


def _theirs(peer: Peer, model: nn.Module, images: Tensor, labels: Tensor, *, clip: bool) -> Tensor:
    return peer.attack(model, images, labels, clip)


def _in_batches(attack: Attack, subject: Subject, batch: int) -> Tensor:
    pairs = zip(torch.split(subject.images, batch), torch.split(subject.labels, batch), strict=True)
    return torch.cat([attack(subject.model, images, labels) for images, labels in pairs])


def measure_bound(subject: Subject, *, batch: int, repeats: int) -> dict[str, object]:
    """Our speed with the gradients of all classes, as a share of that of plain Jacobians.

    The bound takes the gradients of all classes for every image that is still under attack at a
    step, in the same batches and in the way in which autograd is fastest. It leaves out the
    arithmetic of the steps and the last forward pass of each image. Above 100% fewer gradients were
    taken.

    Args:
        subject: network and images; nothing is clipped.
        batch: number of images at once.
        repeats: number of timed rounds, after one that is thrown away.
    """
    steps = deepfool(subject.model, subject.images, labels=subject.labels, variant="overshot").steps
    traces = [active_images(part) for part in torch.split(steps, batch)]

    def plain(way: str) -> None:
        for part, sizes in zip(torch.split(subject.images, batch), traces, strict=True):
            jacobians(JACOBIANS[way], subject.model, part, sizes, batch)

    contestants: dict[str, Callable[[], object]] = {way: partial(plain, way) for way in JACOBIANS}
    contestants[OURS] = partial(_in_batches, partial(_ours, clip=False, prune=None), subject, batch)
    seconds = paired_seconds(contestants, repeats, subject.images.device)
    fastest = min(JACOBIANS, key=lambda way: spread(seconds[way])["median"])
    return {
        "images": len(subject.images),
        "batch": batch,
        "mean_steps": float(steps.double().mean()),
        "fastest_jacobian": fastest,
        "jacobians_per_second": float(steps.sum()) / spread(seconds[fastest])["median"],
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "share_of_bound": spread(ratios(seconds[fastest], seconds[OURS])),
    }
