"""What is proved about a network: lower bounds on the distance to its boundary, and exact ones."""

from robustness_geometry.certify.cost import bound_cost
from robustness_geometry.certify.exact import ExactDistance, exact_distance
from robustness_geometry.certify.lower import LowerBounds, lower_bounds

__all__ = ["ExactDistance", "LowerBounds", "bound_cost", "exact_distance", "lower_bounds"]
