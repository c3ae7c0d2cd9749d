"""A structured perturbation: words hidden in an image (Section 3.4.2, Figure 3.12)."""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import held_out, valid
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.pictures import Panel, image_grid, perturbed_panels, typical
from pipeline.statistics import Estimate, mean, median, share, stack
from pipeline.studies.attacking import inside
from pipeline.tables import class_name, value
from robustness_geometry.attacks import deepfool
from robustness_geometry.checks import check_count, refuse
from robustness_geometry.geometry import orthonormalise
from robustness_geometry.norms import norms, relative_norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Attack, Dataset, Network, Perturbed, picture_shape

__all__ = ["SECTION", "Settings", "watermark", "word_images"]

SECTION = "Section 3.4.2, Figure 3.12"

WIDE = {"": 228, "_wide": 16}
"""Suffix of the numbers -> d / m: the thesis' ratio, and one for small images."""

LARGEST_WIDE = 1024
"""Largest dimension of the wide variant, which is for small images."""

FONT = "fonts/ttf/DejaVuSans-Bold.ttf"
SCALES = (0.45, 1.0)
"""Smallest and largest width of a word, as a share of the image's."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        attack: the attack under study; if it is a DeepFool, its options are used, else the default
            ones.
        samples: number of held-out images.
        words: words whose translated and scaled pictures span the subspace, none of them blank.
        resamples: number of resamples of the bootstrap behind every interval.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    samples: int = 100
    words: tuple[str, ...] = ("NIPS", "SPAIN", "2016")
    resamples: int = 2000
    pictures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("samples", self.samples)
        check_count("resamples", self.resamples)
        if not self.words or not all(isinstance(word, str) and word.strip() for word in self.words):
            refuse("words", self.words, "one or more words that are not blank")


@dataclass(frozen=True)
class Span:
    """The subspace that word pictures span.

    Attributes:
        pictures: (k, C, H, W) the word pictures.
        basis: (rank, d) an orthonormal basis of their span.
    """

    pictures: Tensor
    basis: Tensor


def watermark(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Fool the network by perturbations in the span of pictures of words.

    The words are drawn at random places and scales; m pictures span a subspace of at most m of the
    d dimensions, and DeepFool searches the smallest perturbation inside it.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs the attacks.

    Returns:
        The share of images fooled and the median relative norm, for m = floor(d / 228) and, on
        small images, for m = floor(d / 16); the relative norms (seeds, images) as tensors, NaN
        where an image was not fooled.

    References:
        Section 3.4.2, Figure 3.12 of the thesis; Fawzi, Moosavi-Dezfooli and Frossard, "Robustness
        of classifiers: from adversarial to random noise", NIPS 2016, arXiv:1608.08967.
    """
    images = held_out(data, settings.samples).images
    spans = _spans(picture_shape(data), settings.words)
    found = [
        {
            suffix: _attacked(executor.for_seed(seed), settings, model, images, span)
            for suffix, span in spans.items()
        }
        for seed, model in sorted(network.models.items())
    ]
    samples = stack([_quantities(results, images) for results in found])
    statistics = {f"share_fooled{s}": share(f"fooled{s}") for s in spans}
    statistics |= {f"relative_norm{s}": median(f"norm{s}") for s in spans}
    statistics |= {f"alignment{s}": mean(f"alignment{s}") for s in spans}
    numbers = measured(paired_bootstrap(samples, statistics, resamples=settings.resamples))
    return Findings(
        numbers=numbers,
        tables={"watermark": _table(spans, picture_shape(data), numbers)},
        figures={
            "figure_3_12": _figure(data, images, found[0]),
            "words": _word_figure(next(reversed(spans.values()))),
        },
        tensors={f"relative_norm{suffix}": samples[f"norm{suffix}"].float() for suffix in spans},
        notes=_notes(spans, data, len(images)),
    )


def word_images(
    words: tuple[str, ...], shape: tuple[int, int, int], count: int, generator: torch.Generator
) -> Tensor:
    """Pictures of the words in turn, white on black, at random scales and places.

    A word lies wholly inside its picture.

    Args:
        words: the words to draw.
        shape: channels, height and width; all channels are equal.
        count: number of pictures.
        generator: a CPU generator.

    Returns:
        (count, C, H, W) in [0, 1].
    """
    channels, height, width = shape
    pictures = []
    for index in range(count):
        scale, left, top = torch.rand(3, generator=generator).tolist()
        drawn = _word(
            words[index % len(words)], SCALES[0] + scale * (SCALES[1] - SCALES[0]), height, width
        )
        plane = torch.zeros(height, width)
        y = int(top * (height - drawn.shape[0] + 1))
        x = int(left * (width - drawn.shape[1] + 1))
        plane[y : y + drawn.shape[0], x : x + drawn.shape[1]] = drawn
        pictures.append(plane.expand(channels, height, width))
    return torch.stack(pictures)


def _word(word: str, share_of_width: float, height: int, width: int) -> Tensor:
    """A word that takes the given share of the width, if the height allows, without margins."""
    path = Path(mpl.get_data_path()) / FONT
    left, top, right, bottom = ImageFont.truetype(path, 100).getbbox(word)
    size = 100 * min(share_of_width * width / (right - left), 0.95 * height / (bottom - top))
    font = ImageFont.truetype(path, size)
    left, top, right, bottom = font.getbbox(word)
    canvas = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), word, fill=255, font=font)
    return torch.from_numpy(np.array(canvas, dtype=np.float32) / 255)[:height, :width]


def _spans(shape: tuple[int, int, int], words: tuple[str, ...]) -> dict[str, Span]:
    """Suffix -> subspace; the wide one only where memory allows it."""
    d, spans = math.prod(shape), {}
    for suffix, ratio in WIDE.items():
        m = max(1, d // ratio)
        if suffix and m > LARGEST_WIDE:
            continue
        pictures = word_images(words, shape, m, seeded("watermark", suffix))
        spans[suffix] = Span(pictures, orthonormalise(pictures.flatten(1)))
    return spans


def _attacked(
    executor: Executor, settings: Settings, model: torch.nn.Module, images: Tensor, span: Span
) -> Perturbed:
    """DeepFool inside one span, against one training seed's network."""
    basis = span.basis.to(executor.device)
    return executor.map(partial(inside, settings.attack, basis, model), images).value


def _quantities(results: dict[str, Perturbed], images: Tensor) -> dict[str, Tensor]:
    """Name -> (n,) values of one training seed."""
    quantities = {}
    for suffix, result in results.items():
        if result.alignment is not None:
            quantities[f"alignment{suffix}"] = result.alignment
        quantities[f"fooled{suffix}"] = result.success.double()
        quantities[f"norm{suffix}"] = valid(
            relative_norms(result.perturbations, images), result.success
        )
    return quantities


def _table(
    spans: dict[str, Span], shape: tuple[int, int, int], numbers: dict[str, Estimate]
) -> pd.DataFrame:
    """One row per subspace: its size, the share fooled and the median relative norm."""
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    rows = []
    for suffix, span in spans.items():
        fooled = numbers[f"share_fooled{suffix}"]
        relative = numbers.get(f"relative_norm{suffix}", nothing)
        rows.append(
            {
                "d_over_m": WIDE[suffix],
                "m": len(span.pictures),
                "rank": len(span.basis),
                "share_fooled": fooled.value,
                "share_low": fooled.low,
                "share_high": fooled.high,
                "median_relative_norm": relative.value,
                "norm_low": relative.low,
                "norm_high": relative.high,
                "cos(r, n)": value(numbers, f"alignment{suffix}"),
                "images": fooled.n,
                "seeds": fooled.seeds,
            }
        )
    return pd.DataFrame(rows)


def _figure(data: Dataset, images: Tensor, results: dict[str, Perturbed]) -> Figure:
    """Figure 3.12: original, perturbation and perturbed image, one row per subspace."""
    rows: list[list[Panel | None]] = []
    names = []
    for suffix, result in results.items():
        index = typical(norms(result.perturbations), result.success)
        perturbed, perturbation = perturbed_panels(data, images[index], result, index)
        image = Panel(images[index], class_name(data, result.labels[index]))
        rows.append([image, perturbation, perturbed])
        names.append(f"m = d / {WIDE[suffix]}")
    columns = ["image", "perturbation", "perturbed image"]
    return image_grid(
        rows, row_titles=names, column_titles=columns, title="Hidden words that change the label"
    )


def _word_figure(span: Span) -> Figure:
    """Some of the pictures that span the subspace."""
    shown: list[Panel | None] = [Panel(picture) for picture in span.pictures[:6]]
    return image_grid([shown], title="Word pictures that span the subspace", side=1.6)


def _notes(spans: dict[str, Span], data: Dataset, count: int) -> list[str]:
    """Notes on the subspaces and on what the relative norm is."""
    d = math.prod(data.shape)
    notes = [
        f"{count} held-out images, d = {d}; "
        + "; ".join(
            f"m = floor(d / {WIDE[suffix]}) = {len(span.pictures)} word pictures of rank "
            f"{len(span.basis)}"
            for suffix, span in spans.items()
        )
        + ".",
        "The relative norm is the median over the images that were fooled; perturbed images are "
        "not clipped. cos(r, n), in the mean, is with the normal's projection onto the subspace.",
    ]
    if "_wide" not in spans:
        notes.append(f"No wide variant: floor(d / {WIDE['_wide']}) is above {LARGEST_WIDE}.")
    return notes
