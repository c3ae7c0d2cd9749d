"""Second derivatives with respect to the image: kernels that have them, and a check of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustness_geometry.checks import Described, InputError, refuse
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import normal, seeded
from robustness_geometry.types import Classifier, Images, class_logits

__all__ = [
    "check_once",
    "check_second_derivatives",
    "note_on_second_derivatives",
    "refusing_missing",
    "twice_differentiable",
]

STEP = 1e-8
"""Length of the difference quotient in pixel l2 units, in float64.

So short that hardly any ReLU changes sign along it: a kink would count as a second derivative.
"""

NOISE = 0.01
"""Standard deviation of the noise on the image that is looked at, in pixel units."""

TRIES = 3
"""Number of directions; a kink between two points may spoil one of them."""

SMALLEST = 1e-4
"""Second derivatives below this share of the gradient's norm per pixel unit are not compared."""

CLOSE = 0.1
"""Relative difference up to which the two second derivatives agree."""

MISSING = (
    "is not implemented",
    "once_differentiable",
    "differentiate twice",
    "differentiable twice",
)

KNOWN = ("torch.nn.", "torchvision.", "robustness_geometry.")
"""Where layers come from that are known to have second derivatives."""

DIFFERENCES = (
    "curvatures are to be measured by differences over a finite length (the default), not with "
    "exact=True"
)

ALLOWED = "a network that can be differentiated twice in its images"

_checked: "WeakSet[nn.Module]" = WeakSet()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """While open, attention is computed by kernels that have second derivatives.

    The fast kernels of ``scaled_dot_product_attention`` have a first derivative only.

    Example:
        >>> import torch
        >>> from robustness_geometry.second_derivatives import twice_differentiable
        >>> q = torch.rand(1, 1, 3, 4, requires_grad=True)
        >>> with twice_differentiable():
        ...     out = torch.nn.functional.scaled_dot_product_attention(q, q, q).square().sum()
        >>> (gradient,) = torch.autograd.grad(out, q, create_graph=True)
        >>> torch.autograd.grad(gradient.sum(), q)[0].shape
        torch.Size([1, 1, 3, 4])
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def refusing_missing() -> Iterator[None]:
    """While open, a second derivative that PyTorch does not have is refused in one line.

    Raises:
        InputError: in place of PyTorch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().splitlines()
        if not any(words in str(error) for words in MISSING):
            raise
        refuse("model", Described(f"one without a second derivative ({text[0]})"), ALLOWED)


def check_second_derivatives(model: Classifier, images: Images) -> None:
    """Check that the second derivatives of the logits in the image exist and are right.

    A layer may lack them, or return zeros without a word, as an autograd function does whose
    backward pass leaves the graph. Products of the Hessian of a random sum of the logits with
    random vectors are compared with difference quotients of its gradient, on the first image and
    in float64. They are short enough to be zero for a network of ReLUs, as they should be. The
    check costs about ten gradients of one image.

    Args:
        model: a classifier in evaluation mode. One that cannot be copied or does not compute in
            float64 is checked for missing derivatives only.
        images: (N, C, H, W); the first one is used.

    Raises:
        InputError: a second derivative is missing, or the two disagree.

    Example:
        >>> import torch
        >>> from robustness_geometry.second_derivatives import check_second_derivatives
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Tanh())
        >>> check_second_derivatives(model.eval(), torch.rand(1, 1, 2, 2))
    """
    if not len(images):
        return
    image = images[:1].detach()
    vectors = normal(image.new_empty(TRIES, *image.shape[1:]), None)
    _product(model, image, vectors[:1])
    precise = _in_float64(model)
    if precise is None:
        return
    # Black backgrounds hold ties of max pooling, which are kinks: the noise breaks them.
    place = (image + NOISE * normal(image, seeded("second derivatives"))).double()
    try:
        wrong = [_disagree(precise, place, vector[None].double()) for vector in vectors]
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError):  # a model that insists on its own type
        return
    if all(wrong):
        refuse(
            "model",
            Described("one whose second derivatives differ from differences of its gradients"),
            f"{ALLOWED}: an autograd function in it may leave the graph in its backward pass",
        )


def check_once(model: Classifier, images: Images) -> None:
    """:func:`check_second_derivatives`, once for each network.

    A network that is made of layers of PyTorch and of this project alone needs no check.
    """
    own = all(type(layer).__module__.startswith(KNOWN) for layer in model.modules())
    if not own and model not in _checked:
        check_second_derivatives(model, images)
        _checked.add(model)


def note_on_second_derivatives(model: Classifier, images: Images) -> list[str]:
    """At most one sentence, on second derivatives that are missing, wrong or zero.

    Args:
        model: a classifier that has gradients.
        images: (N, ...), at least one; the first one is used.
    """
    try:
        check_second_derivatives(model, images)
        image = images[:1].detach()
        product, _ = _product(model, image, normal(image, seeded("second derivatives")))
    except InputError as error:
        return [
            f"The network's second derivatives are missing or wrong ({error}): {DIFFERENCES}, and "
            "CURE cannot be used."
        ]
    except (RuntimeError, NotImplementedError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return [f"The network has no second derivatives by autograd ({why}): {DIFFERENCES}."]
    if bool(product.any()):
        return []
    return [
        "The second derivatives of the network are zero, as of piecewise linear layers such as "
        f"ReLU: {DIFFERENCES}."
    ]


def _in_float64(model: Classifier) -> nn.Module | None:
    """A copy of the model in float64, if it can be made."""
    try:
        return deepcopy(model).double()
    except Exception:  # copying runs code of the model, which may raise anything
        return None


def _disagree(model: nn.Module, image: Images, vector: Images) -> bool:
    """Whether H v and its difference quotient are different, for v of length 1."""
    vector = vector / vector.norm()
    product, gradient = _product(model, image, vector)
    ahead, behind = (_product(model, image + s * STEP * vector, None)[1] for s in (1, -1))
    quotient = (ahead - behind) / (2 * STEP)
    size = float(quotient.norm())
    if not size > SMALLEST * float(gradient.norm()):
        return False
    return float((product - quotient).norm()) > CLOSE * size


def _product(model: Classifier, image: Images, vector: Tensor | None) -> tuple[Tensor, Tensor]:
    """H v (zero without v) and the gradient, for a fixed random sum of the logits."""
    with torch.enable_grad(), twice_differentiable(), refusing_missing():
        leaf = image.clone().requires_grad_()
        logits = class_logits(logits_at(model, leaf))
        weights = torch.linspace(-1, 1, logits.shape[1]).to(logits)
        nothing = torch.zeros_like(image)
        if not logits.requires_grad:
            return nothing, nothing
        grad = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
        (gradient,) = grad((logits * weights).sum(), leaf, create_graph=vector is not None)
        if vector is None or not gradient.requires_grad:
            return nothing, gradient.detach()
        (product,) = grad((gradient * vector).sum(), leaf)
        return product, gradient.detach()
