"""Attacks: pure functions from a classifier and images to perturbations, one per file."""

from robustness_geometry.attacks.alignment import alignment
from robustness_geometry.attacks.autoattack import autoattack
from robustness_geometry.attacks.ddn import ddn
from robustness_geometry.attacks.deepfool import deepfool
from robustness_geometry.attacks.fgsm import SmallestEps, fgsm, fgsm_smallest_eps
from robustness_geometry.attacks.fooling import fooled
from robustness_geometry.attacks.lbfgs import lbfgs
from robustness_geometry.attacks.nearest import nearest
from robustness_geometry.attacks.pgd import pgd
from robustness_geometry.attacks.random_noise import random_noise
from robustness_geometry.attacks.robust_accuracy import (
    robust_accuracy_area,
    robust_accuracy_curve,
)
from robustness_geometry.attacks.spsa import spsa
from robustness_geometry.attacks.square import square
from robustness_geometry.attacks.universal import Universal, universal_perturbation
from robustness_geometry.attacks.universal_files import load_universal, save_universal
from robustness_geometry.attacks.universal_gradient import universal_gradient

__all__ = [
    "SmallestEps",
    "Universal",
    "alignment",
    "autoattack",
    "ddn",
    "deepfool",
    "fgsm",
    "fgsm_smallest_eps",
    "fooled",
    "lbfgs",
    "load_universal",
    "nearest",
    "pgd",
    "random_noise",
    "robust_accuracy_area",
    "robust_accuracy_curve",
    "save_universal",
    "spsa",
    "square",
    "universal_gradient",
    "universal_perturbation",
]
