"""Training of the networks that everything else is measured on."""
