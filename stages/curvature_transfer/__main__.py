"""Command line of the stage: `python -m stages.curvature_transfer`."""

from stages.start import main

if __name__ == "__main__":
    main("curvature_transfer")
