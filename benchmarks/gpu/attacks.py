"""DeepFool beside the other libraries, and the searches of the nearest boundary point."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from benchmarks.comparison import Subject
from benchmarks.gpu.blocks import Block, Contestant, average
from benchmarks.gpu.networks import Size
from benchmarks.peers import PEERS, Peer
from robustness_geometry.attacks import deepfool, nearest
from robustness_geometry.geometry import Boundary, boundary_points
from robustness_geometry.norms import norms
from robustness_geometry.types import Perturbed, predict

__all__ = ["all_classes_block", "boundary_block", "deepfool_block", "searches", "unclipped"]

PRUNE, EVERY = "deepfool, prune=2", "deepfool, prune=None"
UNCLIPPED = "deepfool, unclipped, prune=2"
SEARCH, NEAREST = "boundary_points", "nearest"


def deepfool_block(size: Size, subject: Subject) -> Block:
    """DeepFool with and without pruning beside the peers that take as many classes."""
    names = ["foolbox", "adv-lib"] if size.candidates is None else ["foolbox"]
    return Block(_attacks(subject, size.candidates, _peers(names)), [PRUNE])


def all_classes_block(size: Size, subject: Subject) -> Block:
    """The same with all classes, for the images that DeepFool perturbs in the fewest steps.

    Without pruning this takes very long.
    """
    model, images, labels = subject.model, subject.images, subject.labels
    steps = deepfool(model, images, labels=labels, prune=2.0, candidates=size.candidates).steps
    easy = steps.argsort()[: size.few]
    chosen = Subject(model, images[easy], labels[easy])
    return Block(_attacks(chosen, None, _peers(["adv-lib"])), [PRUNE], once=True)


def _peers(names: Sequence[str]) -> list[Peer]:
    return [peer for peer in PEERS if peer.name in names]


def _attacks(subject: Subject, candidates: int | None, peers: Sequence[Peer]) -> list[Contestant]:
    model, images, labels = subject.model, subject.images, subject.labels
    runs: dict[str, Callable[[], Tensor]] = {
        PRUNE: partial(_ours, subject, 2.0, candidates),
        EVERY: partial(_ours, subject, None, candidates),
    }
    for peer in peers:
        if peer.installed:
            attack = partial(peer.attack, model, images, labels, True)
            runs[f"{peer.name} {peer.version}"] = attack
        else:
            runs[peer.name] = partial(_missing, peer)
    return [
        Contestant(name, len(images), run, partial(_fooled, subject), model)
        for name, run in runs.items()
    ]


def _ours(subject: Subject, prune: float | None, candidates: int | None) -> Tensor:
    perturbed: Perturbed = deepfool(
        subject.model,
        subject.images,
        labels=subject.labels,
        variant="overshot",
        clip=(0.0, 1.0),
        prune=prune,
        candidates=candidates,
    )
    return perturbed.adversarial(subject.images)


def _missing(peer: Peer) -> Tensor:
    raise ModuleNotFoundError(f"{peer.distribution} is not installed")


def _fooled(subject: Subject, adversarial: Tensor) -> dict[str, float]:
    moved = predict(subject.model, adversarial) != subject.labels
    lengths = norms(adversarial - subject.images)
    return {"mean_norm": float(lengths.mean()), "success": float(moved.double().mean())}


def unclipped(size: Size) -> Callable[..., Perturbed]:
    """DeepFool as the boundary search uses it."""
    return partial(deepfool, prune=2.0, candidates=size.candidates)


def searches(size: Size) -> dict[str, Callable[..., Perturbed | Boundary]]:
    """The searches of the nearest boundary point, after the attack that they start from.

    ``nearest`` starts from DeepFool with all classes and from a short descent.
    """
    attack = unclipped(size)
    return {UNCLIPPED: attack, SEARCH: partial(boundary_points, attack=attack), NEAREST: nearest}


def boundary_block(size: Size, subject: Subject) -> Block:
    """The searches of the nearest boundary point beside the attack that they start from."""
    model, images, labels = subject.model, subject.images, subject.labels
    rows = [
        Contestant(name, len(images), partial(search, model, images, labels=labels), _near, model)
        for name, search in searches(size).items()
    ]
    return Block(rows, [UNCLIPPED])


def _near(result: Perturbed | Boundary) -> dict[str, float | None]:
    lengths = norms(result.perturbations[result.success])
    return {"mean_norm": average(lengths), "success": float(result.success.double().mean())}
