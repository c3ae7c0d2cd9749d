import pytest
import torch

from robustness_geometry.checks import InputError
from robustness_geometry.datasets.assembly import Pixels, assemble, statistics
from robustness_geometry.datasets.sampling import Limits


def pixels(count, classes=3, shape=(2, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Pixels(values, torch.arange(count, dtype=torch.uint8) % classes)


def test_statistics_are_those_of_the_pixels():
    values = pixels(20).values
    mean, std = statistics(values)
    real = values.double() / 255
    assert mean == pytest.approx(real.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(real.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_images_are_float32_in_0_to_1_with_int64_labels():
    source = pixels(12)
    data = assemble("made", source, pixels(6, seed=1), ["a", "b", "c"], "made up")
    assert data.train.images.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert torch.equal(data.train.images, source.values.float() / 255)
    assert data.shape == (2, 4, 4)
    assert data.mean == statistics(source.values)[0]


def test_limits_leave_the_statistics_as_they_are():
    whole = assemble("made", pixels(30), pixels(9), ["a", "b", "c"], "")
    part = assemble("made", pixels(30), pixels(9), ["a", "b", "c"], "", Limits(6, 3, seed=4))
    assert (len(part.train), len(part.test)) == (6, 3)
    assert torch.bincount(part.train.labels).tolist() == [2, 2, 2]
    assert (part.mean, part.std) == (whole.mean, whole.std)
    again = assemble("made", pixels(30), pixels(9), ["a", "b", "c"], "", Limits(6, 3, seed=4))
    assert torch.equal(part.train.images, again.train.images)


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        (pixels(0), pixels(3), "at least one train image"),
        (pixels(3), pixels(0), "at least one test image"),
        (Pixels(pixels(4).values, pixels(3).labels), pixels(3), "4 images and 3 labels"),
        (pixels(4, classes=4), pixels(3), "labels 0 to 2; the train files hold 0 to 3"),
    ],
)
def test_files_that_make_no_data_set_are_refused(train, test, text):
    with pytest.raises(InputError, match=text):
        assemble("made", train, test, ["a", "b", "c"], "")


def test_constants_allow_an_empty_training_split():
    data = assemble(
        "made", pixels(0), pixels(3), ["a", "b", "c"], "", constants=((0.5, 0.5), (0.2, 0.2))
    )
    assert len(data.train) == 0
    assert data.mean == (0.5, 0.5)
