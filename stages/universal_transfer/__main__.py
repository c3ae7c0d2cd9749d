"""Command line of the stage: `python -m stages.universal_transfer`."""

from stages.start import main

if __name__ == "__main__":
    main("universal_transfer")
