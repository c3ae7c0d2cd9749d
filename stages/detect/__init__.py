"""Section 7.5: detecting perturbed images by the boundary's curvature."""
