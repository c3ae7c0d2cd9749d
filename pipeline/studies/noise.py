"""The norm that random noise needs to change labels, as it is measured, and radii relative to it.

Chapters 4 and 6 relate the norms of universal vectors to it. If the boundary were flat, it would be
some sqrt(d) ||r||_2; where boundaries bend, or those of other classes lie near, it is less.
"""

import math
from functools import partial

from torch import Tensor

from pipeline.executor import Executor
from pipeline.studies.attacking import run
from pipeline.studies.boundary import or_infinite
from robustness_geometry.attacks import random_noise
from robustness_geometry.types import Classifier, Images

__all__ = ["noise_needed", "noise_radius"]


def noise_needed(model: Classifier, images: Images, executor: Executor) -> Tensor:
    """(n,) the smallest l_2 norms at which noise along a random line changes each image's label.

    Both signs of one direction per image are tried (Section 5.3). Infinite where none changes it.
    Computed once for all experiments.
    """
    noise = partial(random_noise, norm=2.0, two_sided=True)
    return or_infinite(run(noise, model, images, executor).value)


def noise_radius(needed: Tensor, share: float, dimension: int) -> float:
    """``share`` of the median norm that random noise needs, in pixel units.

    It is at most the norm of an image of ones: no two images differ by more.

    Args:
        needed: (n,) the norms of :func:`noise_needed`, of images that are not reported.
        share: the wanted share; the thesis: a tenth in Chapter 4, a fifth in Figure 6.9.
        dimension: d.
    """
    # Infinite values take their places in the median, but the midpoint with one is no number.
    middle = float(needed.sort().values[(len(needed) - 1) // 2])
    return min(share * middle, math.sqrt(dimension))
