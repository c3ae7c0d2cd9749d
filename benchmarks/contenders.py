"""Minimum l2 norm attacks of this project and of its peers behind one signature.

Each has options for one or several budgets: passes through the network for an image, forward and
backward together. Where a library's defaults take thousands of passes, the options are those that
gave the smallest mean norm on 40 training digits of LeNet at that budget, out of a few.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import NARROW, WIDE, Box, Widened
from robustness_geometry.attacks import ddn, deepfool, nearest
from robustness_geometry.types import Perturbed

__all__ = ["CONTENDERS", "LONG", "Contender", "Options"]

Options = Mapping[str, Any]
Attack = Callable[[nn.Module, Tensor, Tensor, Box | None, Options], Tensor]


@dataclass(frozen=True)
class Contender:
    """A minimum-norm attack.

    Attributes:
        name: name of the attack.
        distribution: package that carries it; None: this project.
        attack: (model, images, labels, box, options) -> adversarial images; without a box, images
            are not clipped, or where the library always clips, to [-1, 2].
        options: budget in passes an image -> options. What it took in fact is counted.
        judged: whether its norms take part in the best known ones.
    """

    name: str
    distribution: str | None
    attack: Attack
    options: Mapping[int, Options]
    judged: bool = True

    @property
    def library(self) -> str:
        """The library and its version."""
        if self.distribution is None:
            return "this project"
        return f"{self.distribution} {metadata.version(self.distribution)}"

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        module = (self.distribution or "torch").replace("-", "_")
        return util.find_spec(module) is not None


def _own(
    attack: Callable[..., Perturbed],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box | None,
    options: Options,
) -> Tensor:
    return attack(model, images, labels=labels, clip=box, **options).adversarial(images)


def _in_box(
    run: Callable[[nn.Module, Tensor, Tensor, float, Options], Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box | None,
    options: Options,
) -> Tensor:
    """An attack that always clips to [0, 1]; without a box that stands for [-1, 2].

    ``run`` is told how many pixel units its unit of length is.
    """
    if box is not None:
        return run(model, images, labels, 1.0, options).detach()
    widened = Widened(model, NARROW)
    inputs = widened.inputs(images).clamp(0, 1)
    return widened.pixels(run(widened, inputs, labels, widened.width, options).detach())


def _sdf(model: nn.Module, images: Tensor, labels: Tensor, _: float, options: Options) -> Tensor:
    from adv_lib.attacks import sdf

    return sdf(model, images, labels, **options)


def _fab(model: nn.Module, images: Tensor, labels: Tensor, _: float, options: Options) -> Tensor:
    from adv_lib.attacks import fab

    return fab(model, images, labels, norm=2, **options)


def _apgd(
    model: nn.Module, images: Tensor, labels: Tensor, unit: float, options: Options
) -> Tensor:
    from adv_lib.attacks.auto_pgd import minimal_apgd

    return minimal_apgd(model, images, labels, norm=2, max_eps=FIRST_EPS / unit, **options)


def _alma(
    model: nn.Module, images: Tensor, labels: Tensor, unit: float, options: Options
) -> Tensor:
    from adv_lib.attacks import alma

    first = options["first"] / unit
    rest = {name: value for name, value in options.items() if name != "first"}
    return alma(model, images, labels, init_lr_distance=first, **rest)


def _fmn(model: nn.Module, images: Tensor, labels: Tensor, _: float, options: Options) -> Tensor:
    from adv_lib.attacks import fmn

    return fmn(model, images, labels, norm=2, **options)


def _foolbox(
    attack: str,
    bounds: Box,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    box: Box | None,
    options: Options,
) -> Tensor:
    """An attack of foolbox, in ``bounds`` where there is no box."""
    import foolbox

    bounded = foolbox.PyTorchModel(model, bounds=box or bounds, device=images.device)
    found: Tensor = getattr(foolbox.attacks, attack)(**options).run(bounded, images, labels)
    # Images of which Carlini and Wagner's attack finds none come back black.
    black = (found == 0).flatten(1).all(dim=1).view(-1, *[1] * (images.ndim - 1))
    return torch.where(black, images, found)


FIRST_EPS = 2.0
"""The radius at which APGD's bisection starts, in pixel units."""

QUICK = {"refinements": 1, "bisections": 4}

CONTENDERS = (
    Contender("DeepFool", None, partial(_own, deepfool), {10: {}}),
    Contender(
        "nearest, start=deepfool",
        None,
        partial(_own, nearest),
        {30: {"start": "deepfool", **QUICK}, 100: {"start": "deepfool"}},
    ),
    Contender(
        "nearest, start=ddn",
        None,
        partial(_own, nearest),
        {30: {"start": "ddn", **QUICK}, 100: {"start": "ddn"}, 300: {"start": "ddn", "steps": 100}},
    ),
    Contender(
        "nearest, start=both",
        None,
        partial(_own, nearest),
        {200: {"start": "both"}, 300: {"start": "both", "rivals": 2}},
    ),
    Contender(
        "DDN",
        None,
        partial(_own, ddn),
        {10: {"steps": 4}, 30: {"steps": 14}, 100: {"steps": 49}, 300: {"steps": 149}},
    ),
    Contender(
        "SuperDeepFool",
        "adv-lib",
        partial(_in_box, _sdf),
        {30: {"df_steps": 1}, 100: {"df_steps": 2}, 300: {}},
    ),
    Contender(
        "FAB",
        "adv-lib",
        partial(_in_box, _fab),
        {10: {"n_iter": 1}, 30: {"n_iter": 2}, 100: {"n_iter": 9}, 300: {"n_iter": 27}},
    ),
    Contender(
        "FAB, one rival class",
        "adv-lib",
        partial(_in_box, _fab),
        {
            budget: {"targeted_restarts": True, "restarts": 1, "n_iter": iterations}
            for budget, iterations in ((10, 2), (30, 9), (100, 32), (300, 99))
        },
    ),
    Contender(
        "APGD, minimum norm",
        "adv-lib",
        partial(_in_box, _apgd),
        {
            budget: {"binary_search_steps": searches, "n_iter": iterations}
            for budget, searches, iterations in ((10, 2, 2), (30, 3, 4), (100, 6, 7), (300, 12, 11))
        },
    ),
    Contender(
        "ALMA",
        "adv-lib",
        partial(_in_box, _alma),
        {
            budget: {"num_steps": budget // 2, "first": first, "α": momentum}
            for budget, first, momentum in (
                (10, 1.0, 0.5),
                (30, 0.5, 0.5),
                (100, 0.5, 0.5),
                (300, 0.5, 0.9),
            )
        },
    ),
    Contender(
        "FMN",
        "adv-lib",
        partial(_in_box, _fmn),
        {300: {"steps": 150}},
        judged=False,
    ),
    Contender(
        "DDN",
        "foolbox",
        partial(_foolbox, "DDNAttack", WIDE),
        {budget: {"steps": budget // 2} for budget in (10, 30, 100, 300)},
    ),
    Contender(
        "C&W",
        "foolbox",
        partial(_foolbox, "L2CarliniWagnerAttack", NARROW),
        {
            budget: {
                "binary_search_steps": searches,
                "steps": steps,
                "stepsize": 0.3,
                "initial_const": 1.0,
                "abort_early": False,
            }
            for budget, searches, steps in ((10, 1, 5), (30, 2, 7), (100, 2, 25), (300, 3, 50))
        },
    ),
)
"""The attacks, this project's first."""

LONG = (
    Contender("DDN", None, partial(_own, ddn), {1000: {"steps": 400, "gamma": 0.03}}),
    Contender(
        "nearest",
        None,
        partial(_own, nearest),
        {1000: {"start": "both", "rivals": 4, "steps": 40, "angle": 0.001}},
    ),
)
"""Long runs that only serve to know the smallest norms."""
