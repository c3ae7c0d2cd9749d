"""What is proved about a network: lower bounds on the distance to its boundary, and exact ones."""

from robustness_geometry.certify.exact import ExactDistance, exact_distance
from robustness_geometry.certify.lower import LowerBounds, lower_bounds

__all__ = ["ExactDistance", "LowerBounds", "exact_distance", "lower_bounds"]
