"""Command line of the stage: `python -m stages.detect`."""

from stages.start import main

if __name__ == "__main__":
    main("detect")
