"""Calling a network, and finding the logits in what it returns."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from robustness_geometry.checks import Described, refuse

__all__ = [
    "check_lost_gradient",
    "differentiate",
    "logits_at",
    "refuse_change",
    "refuse_lost_gradient",
    "refuse_output_layer",
    "refuse_probabilities",
    "uncompiled",
    "unlocked",
    "unwrapped",
]

NAMED = "logits"
"""Name under which networks of several outputs return their logits."""

TRIVIAL = ("Alias", "Clone", "Reshape", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View")
"""Operations behind an output layer that change no value (the names of their graph's nodes)."""


def logits_at(model: nn.Module, images: Tensor) -> Tensor:
    """The logits that ``model`` returns for ``images``, however they are wrapped.

    This is the one place where the library calls a network. Compiled code runs uncompiled, as
    gradients are taken more than once of one forward pass, which compiled code does not allow.

    Args:
        model: a classifier.
        images: (N, C, H, W).

    Returns:
        (N, classes) or (N, 1), as the network gives them; see :func:`unwrapped`.

    Raises:
        InputError: no logits can be found in the output, or the network cannot take these images.

    Example:
        >>> import torch
        >>> from robustness_geometry.outputs import logits_at
        >>> class Both(torch.nn.Module):
        ...     def forward(self, images):
        ...         return {"logits": images.flatten(1), "loss": images.mean()}
        >>> logits_at(Both(), torch.ones(1, 1, 1, 2))
        tensor([[1., 1.]])
    """
    version = -1 if images.is_inference() else images._version
    try:
        with uncompiled():
            output = model(images)
    except AssertionError as error:  # an exported program checks its input
        if "Guard failed" not in str(error):
            raise
        _refuse_batch(error)
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            refuse_change()
        if "Inference tensors cannot be saved" not in str(error):
            raise
        refuse(
            "model",
            Described("weights or images made under torch.inference_mode()"),
            "a network of ordinary tensors, made outside torch.inference_mode()",
        )
    if version != -1 and images._version != version:
        refuse_change()
    return output if isinstance(output, Tensor) else unwrapped(output)


def refuse_change() -> NoReturn:
    """Refuse a network that writes into the images that it is given."""
    refuse(
        "model",
        Described("a network that changes its images in place"),
        "a network that leaves its images as they are (x = x - mean instead of x.sub_(mean))",
    )


def uncompiled() -> AbstractContextManager[object]:
    """A context in which what torch.compile made runs as it was written."""
    # Importing the compiler takes seconds; where nobody has, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def unlocked(network: nn.Module) -> nn.Module:
    """The network in a form that can be put in evaluation mode, copied and moved, in place.

    That of ``torch.compile`` is the network that was compiled. The module of an exported program,
    which keeps the mode that it was exported in, lets ``eval`` and ``train`` pass without effect.

    Example:
        >>> import torch
        >>> from robustness_geometry.outputs import unlocked
        >>> network = torch.nn.Flatten()
        >>> unlocked(torch.compile(network)) is network
        True
    """
    network = getattr(network, "_orig_mod", network)
    for layer in network.modules():
        for name in ("eval", "train"):
            vars(layer).pop(name, None)
    return network


def unwrapped(output: object) -> Tensor:
    """The logits in what a network returns.

    They are the tensor itself, what is called ``logits`` (an attribute, a field or a key), or the
    only two-dimensional tensor among several.

    Raises:
        InputError: there is no such tensor, or more than one.

    Example:
        >>> import torch
        >>> from robustness_geometry.outputs import unwrapped
        >>> unwrapped((torch.ones(1, 2), torch.tensor(0.5)))
        tensor([[1., 1.]])
    """
    if isinstance(output, Tensor):
        return output
    named = output.get(NAMED) if isinstance(output, Mapping) else getattr(output, NAMED, None)
    if isinstance(named, Tensor):
        return named
    found = [part for part in _parts(output) if isinstance(part, Tensor) and part.ndim == 2]
    if len(found) != 1:
        several = f", as {len(found)} of its tensors could be the logits" if found else ""
        refuse(
            "model.output",
            type(output).__name__,
            f"a tensor of logits (N, classes), or hold one that is called {NAMED}{several}",
        )
    return found[0]


def _parts(output: object) -> Iterator[object]:
    if isinstance(output, Mapping):
        yield from output.values()
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        yield from output
    elif is_dataclass(output):
        yield from (getattr(output, field.name) for field in fields(output))


def differentiate(
    model: nn.Module, logits: Tensor, leaf: Tensor, weights: Tensor, **options: Any
) -> Tensor:
    """The gradient of the weighted logits by the images that they were computed from.

    It is zero for a network that ignores its images.

    Args:
        model: the network that gave the logits.
        logits: (N, classes), with their graph.
        leaf: (N, C, H, W) the images.
        weights: (N, classes).
        options: of ``torch.autograd.grad``.

    Raises:
        InputError: the logits depend on the images, but no gradient can reach these.
    """
    gradient = None
    if logits.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(logits, leaf, weights, allow_unused=True, **options)
        except RuntimeError as error:
            if "checkpoint" not in str(error) or ".grad()" not in str(error):
                raise
            refuse(
                "model",
                Described("torch.utils.checkpoint with use_reentrant=True"),
                "a network whose activations are checkpointed with use_reentrant=False, or not",
            )
    if gradient is None:
        check_lost_gradient(model, leaf, logits)
        return torch.zeros_like(leaf)
    return gradient


def check_lost_gradient(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Refuse a network whose logits have no gradient by the images, unless it ignores them.

    Raises:
        InputError: the network gives other logits to other images, or runs in inference mode.
    """
    if torch.is_inference_mode_enabled():
        refuse(
            "model",
            Described("a call under torch.inference_mode()"),
            "called outside torch.inference_mode(), which lets no gradient reach the images",
        )
    generator = torch.Generator().manual_seed(0)
    first = logits[:1, -1:].detach()
    for scale in (1, 1, 10, 10):
        noise = scale * torch.randn(images.shape, generator=generator, dtype=torch.float32)
        with torch.no_grad():
            other = logits_at(model, noise.to(images.device, images.dtype))[:, -1:]
        if not (torch.equal(other, first.expand_as(other))):
            refuse_lost_gradient()


def refuse_lost_gradient() -> NoReturn:
    """Refuse a network through which no gradient reaches the images."""
    refuse(
        "model",
        Described("logits that change with the images but have no gradient by them"),
        "a network without no_grad, inference_mode, detach, .data, NumPy, argmax or quantised "
        "layers between images and logits",
    )


def refuse_output_layer(logits: Tensor) -> None:
    """Refuse outputs that end in a softmax or, for (N, 1), in a sigmoid, as their graph tells.

    It asks for no value, so that it costs nothing.

    Raises:
        InputError: the outputs are probabilities.
    """
    node = logits.grad_fn
    while node is not None and node.name().partition("Backward")[0].lstrip("_") in TRIVIAL:
        node = node.next_functions[0][0]
    name = "" if node is None else node.name()
    if name.startswith("SigmoidBackward") and logits.shape[1] == 1:
        refuse_probabilities("a sigmoid")
    if name.startswith("SoftmaxBackward"):
        refuse_probabilities("a softmax")


def refuse_probabilities(layer: str) -> NoReturn:
    """Refuse a network whose last layer makes probabilities of its logits."""
    refuse(
        "model.output",
        Described(f"probabilities, as of {layer}"),
        f"logits: return what {layer} is given, wrap the network in "
        "robustness_geometry.models.LogProbabilities, or write model.output=probabilities on the "
        "command line",
    )


def _refuse_batch(error: AssertionError) -> NoReturn:
    why = (str(error).splitlines() or [""])[0]
    refuse(
        "model",
        Described(f"a program that was exported for other images ({why})"),
        "a network that takes these images in batches of any size (torch.export.export(..., "
        "dynamic_shapes=({0: torch.export.Dim('n', min=1)},)))",
    )
