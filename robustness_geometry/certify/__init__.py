"""What is proved about a network: lower bounds on the distance to its boundary, and exact ones."""

from robustness_geometry.certify.lower import LowerBounds, lower_bounds

__all__ = ["LowerBounds", "lower_bounds"]
