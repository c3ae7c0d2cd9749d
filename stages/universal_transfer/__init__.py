"""Section 4.3.3: universal perturbations from network to network."""
