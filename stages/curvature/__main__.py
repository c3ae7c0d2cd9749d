"""Command line of the stage: `python -m stages.curvature`."""

from stages.start import main

if __name__ == "__main__":
    main("curvature")
