"""Chapter 4: universal perturbations."""
