"""Chapter 8: curvature regularisation beside adversarial training."""
