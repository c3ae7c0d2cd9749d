"""Command line of the stage: `python -m stages.attack`."""

from stages.start import main

if __name__ == "__main__":
    main("attack")
