"""Section 3.3: fine-tuning on adversarial examples."""
