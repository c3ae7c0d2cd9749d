"""Attacks: pure functions from a classifier and images to perturbations, one public function a file."""

from pipeline.attacks.autoattack import autoattack
from pipeline.attacks.ddn import ddn
from pipeline.attacks.deepfool import deepfool
from pipeline.attacks.fgsm import SmallestEps, fgsm, fgsm_smallest_eps
from pipeline.attacks.lbfgs import lbfgs
from pipeline.attacks.pgd import pgd
from pipeline.attacks.random_noise import random_noise
from pipeline.attacks.spsa import spsa
from pipeline.attacks.universal import Universal, fooled, universal_perturbation
from pipeline.attacks.universal_files import load_universal, save_universal

__all__ = [
    "SmallestEps",
    "Universal",
    "autoattack",
    "ddn",
    "deepfool",
    "fgsm",
    "fgsm_smallest_eps",
    "fooled",
    "lbfgs",
    "load_universal",
    "pgd",
    "random_noise",
    "save_universal",
    "spsa",
    "universal_perturbation",
]
