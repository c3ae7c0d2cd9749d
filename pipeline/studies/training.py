"""Networks trained once and resumed after a crash: from scratch, or from another network."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.executor import Executor
from pipeline.keys import Fingerprint, Sources
from robustness_geometry.models import build
from robustness_geometry.training import CrossEntropy, Recipe, fine_tune, train
from robustness_geometry.types import Classifier, Dataset, Split

__all__ = ["fine_tuned", "trained", "training", "with_weights"]


def trained(
    factory: Callable[..., nn.Module], data: Dataset, recipe: Recipe, seed: int, executor: Executor
) -> tuple[Classifier, dict[str, list[float]]]:
    """The network of one training seed, trained once.

    An interrupted training resumes from its last epoch.

    Args:
        factory: makes the network for given channels, size, classes, mean and std.
        data: the images to train and test on.
        recipe: how to train.
        seed: seed of the initialisation and of the training's randomness.
        executor: keeps the weights and the epochs' checkpoints in its work folder.

    Returns:
        The model in evaluation mode on the executor's device, and its curves.

    Raises:
        TrainingDiverged: the loss or a weight became NaN or infinite.
    """
    model = executor.to_device(build(factory, data, seed), data.test.images)
    folder = str(executor.work / "checkpoints")
    work = partial(training, model, data.train, recipe, seed, folder, test=data.test)
    result = executor.shared_task(work, name=f"training on {data.name}, seed {seed}").value
    model.load_state_dict(result["weights"])
    return model, {name: values.tolist() for name, values in result["history"].items()}


def training(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    seed: int,
    folder: str,
    *,
    test: Split | None = None,
    objective: CrossEntropy | None = None,
    keep_states: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train a copy of ``model``, as a task of the executor.

    Args:
        model: the network to start from.
        data: the training images and labels.
        recipe: how to train.
        seed: seed of all randomness.
        folder: folder of the epochs' checkpoints; the file is named after everything that the
            training depends on, its source code included.
        test: images on which the error is measured after each epoch.
        objective: the loss that is minimised; None: the cross-entropy.
        keep_states: also return the weights after each epoch.

    Returns:
        ``weights``; ``history``, curve name -> one value per epoch; ``states``, epoch -> weights.
    """
    fingerprint = Fingerprint()
    device = next(model.parameters()).device
    mixed = torch.is_autocast_enabled(device.type)
    instructions = torch.backends.cpu.get_cpu_capability()
    machine = (device, mixed, torch.get_num_threads(), instructions, str(torch.__version__))
    key = fingerprint.of((train, model, data, recipe, objective, seed, test, machine), "training")
    source = Sources().digest(fingerprint.modules)
    result = train(
        model,
        data,
        recipe,
        objective=objective,
        seed=seed,
        test=test,
        checkpoint=f"{folder}/{key.hex()[:16]}-{source.hex()[:16]}",
        keep_states=keep_states,
    )
    history = {
        name: torch.tensor(values, dtype=torch.float64) for name, values in result.history.items()
    }
    states = {str(epoch): state for epoch, state in enumerate(result.states, 1)}
    return {"weights": result.state_dict, "history": history, "states": states}


def fine_tuned(
    model: Classifier, data: Split, recipe: Recipe, seed: int, executor: Executor
) -> list[Classifier]:
    """The network after each extra epoch on ``data``, trained once for all experiments.

    Args:
        model: the trained network to start from.
        data: the images (n, C, H, W) and labels of the extra epochs.
        recipe: how to train.
        seed: seed of the training's randomness.
        executor: keeps the weights.
    """
    work = partial(_states, model, data, recipe, seed)
    label = f"{recipe.epochs} extra epochs on {len(data)} images, seed {seed}"
    states = executor.shared_task(work, name=label).value
    return [with_weights(model, states[str(epoch)]) for epoch in range(1, recipe.epochs + 1)]


def _states(
    model: Classifier, data: Split, recipe: Recipe, seed: int
) -> dict[str, dict[str, Tensor]]:
    """The weights after each epoch, by its number."""
    return {str(epoch): w for epoch, w in enumerate(fine_tune(model, data, recipe, seed=seed), 1)}


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Classifier:
    """A copy of ``model`` with other weights."""
    changed = copy.deepcopy(model)
    changed.load_state_dict(weights)
    return changed
