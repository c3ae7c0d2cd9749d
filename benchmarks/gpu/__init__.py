"""Speed and memory on a GPU, and agreement with the CPU: ``make bench-gpu`` runs this package."""
