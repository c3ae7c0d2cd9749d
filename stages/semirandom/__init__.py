"""Chapter 5: perturbations between random noise and the worst case."""
