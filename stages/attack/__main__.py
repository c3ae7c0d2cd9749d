"""Command line of the stage: `python -m stages.attack`."""

from stages.runner import main

main("attack")
