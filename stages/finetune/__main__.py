"""Command line of the stage: `python -m stages.finetune`."""

from stages.runner import main

main("finetune")
