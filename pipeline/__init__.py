"""The geometry of adversarial robustness: attacks, boundary geometry and robust training for torch classifiers."""
