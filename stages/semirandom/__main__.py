"""Command line of the stage: `python -m stages.semirandom`."""

from stages.runner import main

if __name__ == "__main__":
    main("semirandom")
