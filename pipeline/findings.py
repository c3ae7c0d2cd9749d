"""What an experiment returns: numbers with their n and spread, tables, figures and tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.statistics import Estimate

__all__ = ["Findings"]


@dataclass
class Findings:
    """The results of one experiment on one network.

    Attributes:
        numbers: name -> estimate; claims are tested on them. They go to ``metrics.json``.
        timings: name -> estimate in seconds (or ratio of seconds); kept apart, as they differ from
            run to run.
        curves: name -> one value per step (epoch, band ...); logged with steps.
        tables: name -> data frame, written as CSV.
        figures: name -> matplotlib figure, written as PNG.
        tensors: name -> tensor, written as one safetensors file.
        notes: sentences for the report, such as what was measured on how many images.
    """

    numbers: dict[str, Estimate] = field(default_factory=dict)
    timings: dict[str, Estimate] = field(default_factory=dict)
    curves: dict[str, Sequence[float]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
