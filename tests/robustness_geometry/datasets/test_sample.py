import torch

from pipeline.evaluation import held_out
from robustness_geometry.datasets import mnist5k, sample_digits


def test_the_sample_is_the_first_held_out_digits():
    sample, first = sample_digits(), held_out(mnist5k(), 100)
    torch.testing.assert_close(sample.images, first.images)
    assert torch.equal(sample.labels, first.labels)
    assert torch.bincount(sample.labels).tolist() == [10] * 10
