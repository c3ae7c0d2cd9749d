"""Command line of the stage: `python -m stages.train`."""

from stages.runner import main

main("train")
