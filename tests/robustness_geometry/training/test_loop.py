"""Training: one step against its formula, the same bytes from the same seed, and checkpoints."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import nn

from robustness_geometry.checks import InputError
from robustness_geometry.training import Recipe, TrainingDiverged, train
from robustness_geometry.training.loop import crop_flip, error
from robustness_geometry.types import Split


def split(count=60, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.4
    for index, label in enumerate(labels):
        images[index, 0, 2 * label : 2 * label + 2] += 0.5
    return Split(images, labels)


def small(classes=3, seed=0):
    """Convolution, batch norm and dropout: everything whose state a checkpoint must carry."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(144, classes),
    ).eval()


def linear(pixels=4, classes=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double().eval()


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def gradient(weight, bias, images, labels):
    """Of the mean cross-entropy of a linear classifier."""
    excess = torch.softmax(images.flatten(1) @ weight.T + bias, dim=1) - nn.functional.one_hot(
        labels, len(bias)
    )
    return excess.T @ images.flatten(1) / len(images), excess.mean(dim=0)


def test_one_step_of_a_linear_model_is_the_gradient_step():
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    model = linear()
    weight, bias = (p.detach().clone() for p in model.parameters())
    recipe = Recipe(epochs=1, batch_size=5, learning_rate=0.3, weight_decay=0.1)
    trained = train(model, Split(images, labels), recipe).model[1]
    slope, shift = gradient(weight, bias, images, labels)
    torch.testing.assert_close(
        trained.weight, weight - 0.3 * (slope + 0.1 * weight), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        trained.bias, bias - 0.3 * (shift + 0.1 * bias), rtol=1e-12, atol=1e-12
    )


def test_momentum_and_the_schedule_enter_the_second_step():
    images = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    model = linear()
    weight, bias = (p.detach().clone() for p in model.parameters())
    recipe = Recipe(
        epochs=2,
        batch_size=4,
        learning_rate=0.3,
        momentum=0.5,
        weight_decay=0.0,
        schedule="step",
        milestones=(1,),
        decay=0.2,
    )
    trained = train(model, Split(images, labels), recipe).model[1]
    first = gradient(weight, bias, images, labels)
    after = [weight - 0.3 * first[0], bias - 0.3 * first[1]]
    second = gradient(*after, images, labels)
    wanted = [a - 0.06 * (s + 0.5 * f) for a, f, s in zip(after, first, second, strict=True)]
    torch.testing.assert_close(trained.weight, wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trained.bias, wanted[1], rtol=1e-12, atol=1e-12)


def test_adam_first_step_has_the_length_of_the_learning_rate():
    model = linear()
    before = model[1].weight.detach().clone()
    data = Split(torch.rand(4, 1, 2, 2, dtype=torch.float64) + 0.1, torch.tensor([0, 1, 2, 1]))
    recipe = Recipe(epochs=1, batch_size=4, optimiser="adam", learning_rate=0.01, weight_decay=0.0)
    moved = train(model, data, recipe).model[1].weight - before
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-4, atol=0)


def test_a_binary_model_with_one_logit_learns_the_sign():
    images = torch.rand(80, 1, 2, 2)
    labels = (images[:, 0, 0, 0] > images[:, 0, 1, 1]).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).eval()
    result = train(
        model,
        Split(images, labels),
        Recipe(epochs=40, batch_size=20, learning_rate=0.5, weight_decay=0),
    )
    assert error(result.model, Split(images, labels)) <= 0.05
    assert result.history["train_loss"][-1] < result.history["train_loss"][0] / 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    recipe = Recipe(epochs=3, batch_size=16, augmentation="crop_flip")
    torch.manual_seed(5)
    first = train(small(), split(), recipe, seed=3, test=split(seed=9))
    torch.manual_seed(77)  # whatever the caller has drawn before
    second = train(small(), split(), recipe, seed=3, test=split(seed=9))
    other = train(small(), split(), recipe, seed=4, test=split(seed=9))
    assert same(first.state_dict, second.state_dict)
    assert first.history == second.history
    assert not same(first.state_dict, other.state_dict)


def test_the_callers_model_and_random_numbers_stay():
    model = small().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    result = train(model, split(), Recipe(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert same(model.state_dict(), before)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(layer.training for layer in (*model.modules(), *result.model.modules()))


def test_batch_norm_statistics_move():
    result = train(small(), split(), Recipe(epochs=1, batch_size=16))
    assert int(result.state_dict["1.num_batches_tracked"]) == 4
    assert not torch.equal(result.state_dict["1.running_mean"], torch.zeros(4))


def test_the_curves_are_what_they_say():
    data, test = split(), split(30, seed=9)
    seen = []
    recipe = Recipe(epochs=4, batch_size=16)
    result = train(
        small(),
        data,
        recipe,
        test=test,
        on_epoch=lambda epoch, model, values: seen.append((epoch, model.training, values)),
    )
    assert set(result.history) == {"train_loss", "train_error", "test_error"}
    assert [len(curve) for curve in result.history.values()] == [4, 4, 4]
    assert result.history["test_error"][-1] == error(result.model, test)
    assert [(epoch, training) for epoch, training, _ in seen] == [
        (1, False),
        (2, False),
        (3, False),
        (4, False),
    ]
    assert [values["train_loss"] for *_, values in seen] == result.history["train_loss"]
    assert "test_error" not in train(small(), data, recipe).history


def test_the_training_loss_is_the_mean_over_images_with_a_smaller_last_batch():
    data = Split(torch.rand(7, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    model = linear()
    with torch.no_grad():
        wanted = float(nn.functional.cross_entropy(model(data.images), data.labels))
    history = train(model, data, Recipe(epochs=1, batch_size=4, learning_rate=1e-12)).history
    assert history["train_loss"][0] == pytest.approx(wanted, rel=1e-9)


def test_a_single_left_over_image_joins_the_batch_before():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)).eval()
    result = train(model, split(33), Recipe(epochs=1, batch_size=16, learning_rate=0.01))
    assert int(result.state_dict["1.num_batches_tracked"]) == 2


def test_the_result_has_the_plain_memory_layout():
    result = train(small(), split(), Recipe(epochs=1))
    assert all(tensor.is_contiguous() for tensor in result.state_dict.values())
    assert all(tensor.is_contiguous() for tensor in result.model.state_dict().values())


def stop_after(epochs, epoch, *_):
    if epoch == epochs:
        raise KeyboardInterrupt


RESUMED = {
    "sgd": Recipe(epochs=4, batch_size=16, schedule="cosine", augmentation="crop_flip"),
    "adam": Recipe(epochs=4, batch_size=16, optimiser="adam", learning_rate=0.01),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_killed_training_resumed_gives_the_bytes_of_an_unbroken_one(tmp_path, name, epochs):
    options = {"seed": 2, "test": split(20, seed=9)}
    unbroken = train(small(), split(), RESUMED[name], **options)
    with pytest.raises(KeyboardInterrupt):
        train(
            small(),
            split(),
            RESUMED[name],
            checkpoint=tmp_path / "one",
            on_epoch=partial(stop_after, epochs),
            **options,
        )
    seen = []
    resumed = train(
        small(),
        split(),
        RESUMED[name],
        checkpoint=tmp_path / "one",
        on_epoch=lambda epoch, *_: seen.append(epoch),
        **options,
    )
    assert seen == list(range(epochs + 1, 5))
    assert same(resumed.state_dict, unbroken.state_dict)
    assert resumed.history == unbroken.history


OTHERS = {
    "weights": lambda given: given | {"model": small(seed=1)},
    "data": lambda given: given | {"data": split(seed=1)},
    "recipe": lambda given: (
        given | {"recipe": dataclasses.replace(given["recipe"], learning_rate=0.04)}
    ),
    "seed": lambda given: given | {"seed": 1},
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change):
    recipe = Recipe(epochs=2, batch_size=16)
    given = {"model": small(), "data": split(), "recipe": recipe, "seed": 0}
    first = train(**given, checkpoint=tmp_path / "one")
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint.*one\.pt"):
        train(**OTHERS[change](given), checkpoint=tmp_path / "one")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    again = train(**given, checkpoint=tmp_path / "one")
    assert same(first.state_dict, again.state_dict)


class Fragile(nn.Module):
    """Its output becomes infinite after a given number of training steps."""

    def __init__(self, steps):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.steps = steps
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.eval()

    def forward(self, images):
        self.count += self.training
        return self.inner(images) * (math.inf if self.count > self.steps else 1.0)


def test_divergence_names_epoch_step_and_loss_and_keeps_the_last_good_checkpoint(tmp_path):
    torch.manual_seed(0)
    recipe = Recipe(epochs=4, batch_size=16)  # four steps an epoch
    message = (
        r"training diverged in epoch 3, step 2: loss nan; "
        r"the state after epoch 2 is kept in .*\.pt$"
    )
    with pytest.raises(TrainingDiverged, match=message):
        train(Fragile(9), split(64), recipe, checkpoint=tmp_path / "one")
    (kept,) = tmp_path.iterdir()
    state = torch.load(kept, weights_only=True)
    assert state["epochs"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_divergence_in_the_first_epoch_promises_no_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"epoch 1, step 3: loss nan$"):
        train(Fragile(2), split(64), Recipe(epochs=1, batch_size=16), checkpoint=tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_last_step_made_infinite_are_divergence():
    data = Split(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.raises(
        TrainingDiverged, match=r"epoch 1, step 1: loss .*, then 1\.weight is not finite"
    ):
        train(model, data, Recipe(epochs=1, batch_size=4, learning_rate=1e38, weight_decay=1e38))


def test_mixed_precision_sees_the_new_weights_at_every_step():
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.1)
    full = train(small(), split(), recipe)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = train(small(), split(), recipe)
    assert mixed.state_dict["0.weight"].dtype == torch.float32
    assert mixed.history["train_loss"][-1] == pytest.approx(full.history["train_loss"][-1], rel=0.1)
    assert mixed.history["train_loss"] != full.history["train_loss"]


def test_float16_is_refused():
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(InputError, match=r"executor\.precision must be .*; got '16-mixed'"),
    ):
        train(small(), split(), Recipe(epochs=1))


def test_crops_and_mirrored_crops_are_parts_of_the_padded_image():
    images = torch.rand(40, 2, 5, 6) + 0.1
    generator = torch.Generator().manual_seed(0)
    out = crop_flip(images, generator)
    assert out.shape == images.shape
    mirrored = 0
    for image, crop in zip(images, out, strict=True):
        padded = nn.functional.pad(image, (4, 4, 4, 4))
        windows = [padded[:, i : i + 5, j : j + 6] for i in range(9) for j in range(9)]
        plain = any(torch.equal(window, crop) for window in windows)
        turned = any(torch.equal(window.flip(2), crop) for window in windows)
        assert plain or turned
        mirrored += turned and not plain
    assert 5 < mirrored < 35
    assert not torch.equal(out, crop_flip(images, generator))


def test_the_rates_of_the_schedules():
    assert Recipe(learning_rate=0.2, schedule="constant").rate(7.5) == 0.2
    step = Recipe(learning_rate=0.2, schedule="step", milestones=(2, 4), decay=0.1, epochs=6)
    assert [step.rate(e) for e in (0, 1.9, 2, 4.5)] == pytest.approx([0.2, 0.2, 0.02, 0.002])
    cosine = Recipe(learning_rate=0.2, schedule="cosine", epochs=10)
    assert [cosine.rate(e) for e in (0, 5, 10)] == pytest.approx([0.2, 0.1, 0.0])
    adam = Recipe(learning_rate=1e-4, final_rate=1e-6, schedule="cosine", epochs=20)
    assert [adam.rate(e) for e in (0, 10, 20)] == pytest.approx([1e-4, 5.05e-5, 1e-6])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"epochs": 0}, "training.epochs must be .*; got 0"),
        ({"batch_size": 0}, "training.batch_size must be .*; got 0"),
        ({"optimiser": "lion"}, "training.optimiser must be one of sgd, adam.*; got 'lion'"),
        ({"learning_rate": 0.0}, "training.learning_rate must be .*; got 0.0"),
        ({"learning_rate": math.nan}, "training.learning_rate must be .*; got nan"),
        ({"momentum": 1.0}, "training.momentum must be .*; got 1.0"),
        ({"weight_decay": -1e-4}, "training.weight_decay must be .*; got -0.0001"),
        ({"schedule": "linear"}, "training.schedule must be .*; got 'linear'"),
        ({"schedule": "step"}, r"training.milestones must be .*; got \[\]"),
        ({"milestones": (3,)}, r"training.milestones must be .*; got \[3\]"),
        (
            {"schedule": "step", "milestones": (4, 2)},
            r"training.milestones must be .*; got \[4, 2\]",
        ),
        ({"schedule": "step", "milestones": (0,)}, "training.milestones must be .*; got 0"),
        (
            {"schedule": "step", "milestones": (5, 15)},
            r"training.milestones must be epochs below .*=15.*; got \[5, 15\]",
        ),
        ({"decay": 1.5}, "training.decay must be .*; got 1.5"),
        ({"schedule": "cosine", "final_rate": -1e-6}, "training.final_rate must be .*; got -1e-06"),
        ({"schedule": "cosine", "final_rate": 0.05}, "training.final_rate must be .*; got 0.05"),
        ({"final_rate": 1e-6}, "training.final_rate must be .*; got 1e-06"),
        ({"augmentation": "mixup"}, "training.augmentation must be .*; got 'mixup'"),
    ],
)
def test_recipes_out_of_range_are_refused(options, key):
    with pytest.raises(InputError, match=key):
        Recipe(**options)


def test_milestones_from_a_list_become_a_tuple():
    assert Recipe(schedule="step", milestones=[1, 2]) == Recipe(schedule="step", milestones=(1, 2))


def test_data_that_cannot_be_trained_on_are_refused():
    recipe = Recipe(epochs=1)
    with pytest.raises(InputError, match="training images must be at least one image; got nothing"):
        train(small(), split().first(0), recipe)
    with pytest.raises(InputError, match=r"training labels must be from 0 to 2, .*; got 0 to 4"):
        train(small(), Split(split(5).images, torch.arange(5)), recipe)
    with pytest.raises(InputError, match=r"len\(labels\) must be 5, one label per training image"):
        train(small(), Split(split(5).images, torch.zeros(4, dtype=torch.long)), recipe)
    with pytest.raises(InputError, match="NaN or infinite pixels"):
        train(small(), Split(split(5).images / 0, torch.zeros(5, dtype=torch.long)), recipe)
