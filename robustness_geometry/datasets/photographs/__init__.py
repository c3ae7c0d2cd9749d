"""Photographs from Debian packages, for ImageNet networks where ImageNet cannot be had.

``python -m robustness_geometry.datasets.photographs FOLDER`` makes the folder that
:func:`photographs` reads.
"""

from robustness_geometry.datasets.photographs.folder import Picture, photographs
from robustness_geometry.datasets.photographs.making import make

__all__ = ["Picture", "make", "photographs"]
