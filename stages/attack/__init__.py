"""Chapter 3: minimal adversarial perturbations."""
