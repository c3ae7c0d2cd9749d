"""Command line of the stage: `python -m stages.universal`."""

from stages.start import main

if __name__ == "__main__":
    main("universal")
