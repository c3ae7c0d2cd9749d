"""Attacks: pure functions from a classifier and images to perturbations, one public function a file."""

from pipeline.attacks.ddn import ddn
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.fgsm import SmallestEps, fgsm, fgsm_smallest_eps
from pipeline.attacks.lbfgs import lbfgs
from pipeline.attacks.pgd import pgd
from pipeline.attacks.random_noise import random_noise

__all__ = ["SmallestEps", "ddn", "deepfool", "fgsm", "fgsm_smallest_eps", "lbfgs", "pgd", "random_noise"]
