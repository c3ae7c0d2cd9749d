import math

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from matplotlib.collections import PolyCollection
from PIL import Image

from pipeline.pictures import Panel, image_grid
from pipeline.plots import (
    Line,
    axes_grid,
    bar_figure,
    dominant_share,
    estimate_line,
    histogram_figure,
    line_figure,
    save,
)
from pipeline.statistics import Estimate

ESTIMATES = [Estimate(1.0, 0.8, 1.3, 10), Estimate(2.0, 1.7, 2.2, 10)]


def picture(channels, seed=0):
    return torch.rand(channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def lines():
    return line_figure(
        {
            "DeepFool": estimate_line([1, 2], ESTIMATES),
            "FGSM": Line([1, 2], [3, 1], [2, 0], [4, 2], errorbars=True),
        },
        xlabel="epoch",
        ylabel="robustness",
        title="Figure",
        references={"original": 1.5},
    )


def grid():
    return image_grid(
        [[Panel(picture(1), "seven"), Panel(picture(1) - 0.5, "r", perturbation=True)]]
    )


FIGURES = {
    "lines": lines,
    "bars": lambda: bar_figure(
        {"LeNet": {"a": ESTIMATES[0]}, "NIN": {"a": ESTIMATES[0], "b": ESTIMATES[1]}}, ylabel="y"
    ),
    "histogram": lambda: histogram_figure({"a": picture(1), "b": picture(1) + 1}, xlabel="norm"),
    "images": grid,
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_not_blank_and_saved_alike_each_time(name, tmp_path):
    for run in "ab":
        save(FIGURES[name](), tmp_path / f"{run}.png")
    assert dominant_share(tmp_path / "a.png") < 0.97
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_blank_picture_is_told(tmp_path):
    Image.new("RGB", (100, 100), "white").save(tmp_path / "blank.png")
    assert dominant_share(tmp_path / "blank.png") == 1.0
    half = Image.new("RGB", (100, 100), "white")
    half.paste("black", (0, 0, 100, 40))
    half.save(tmp_path / "half.png")
    assert dominant_share(tmp_path / "half.png") == pytest.approx(0.6)


def test_no_global_style_is_left_behind():
    before = dict(rcParams)
    lines()
    grid()
    assert dict(rcParams) == before


def test_lines_show_values_bands_and_references():
    axes = lines().axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert list(curves["DeepFool"].get_ydata()) == [1.0, 2.0]
    assert curves["original"].get_linestyle() == "--"
    assert set(curves["original"].get_ydata()) == {1.5}
    band = next(c for c in axes.collections if isinstance(c, PolyCollection))
    assert band.get_paths()[0].vertices[:, 1].min() == 0.8
    assert band.get_paths()[0].vertices[:, 1].max() == 2.2
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["DeepFool", "FGSM", "original"]


def test_histograms_are_shares_and_leave_non_finite_values_out():
    values = torch.tensor([1.0, 1.0, 2.0, math.nan, math.inf])
    axes = histogram_figure({"a": values}, xlabel="norm", bins=2).axes[0]
    heights = axes.patches[0].get_xy()[:, 1]
    assert heights.max() == pytest.approx(2 / 3)


@pytest.mark.parametrize("values", [torch.ones(5), torch.tensor([math.nan]), torch.zeros(3)])
def test_histograms_of_equal_or_no_values_are_drawn(values, tmp_path):
    save(histogram_figure({"a": values}, xlabel="norm", log_x=True), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_perturbations_share_one_scale_that_is_stated():
    small, large = torch.full((1, 4, 4), 0.01), torch.full((1, 4, 4), -0.2)
    figure = image_grid([[Panel(small, perturbation=True), Panel(large, perturbation=True)]])
    limits = [axes.images[0].get_clim() for axes in figure.axes]
    assert limits[0] == limits[1] == pytest.approx((-0.2, 0.2), rel=1e-5)
    assert "red 0.2" in figure.get_supxlabel()


def test_a_colour_perturbation_is_grey_plus_its_magnification():
    figure = image_grid([[Panel(torch.full((3, 4, 4), 0.02), perturbation=True)]], limit=0.1)
    assert shown(figure.axes[0]) == pytest.approx(0.5 + 5 * 0.02)
    assert "grey + 5 times" in figure.get_supxlabel()


def test_images_keep_their_pixels_and_captions():
    figure = image_grid(
        [
            [Panel(picture(3), "whale"), None],
            [Panel(picture(1), "seven\n2.0"), Panel(picture(1), "nine")],
        ],
        title="Figure",
        row_titles=["one", "two"],
        column_titles=["left", "right"],
    )
    first, empty, third, _ = figure.axes
    torch.testing.assert_close(torch.from_numpy(shown(first)).permute(2, 0, 1), picture(3).double())
    assert first.get_xlabel() == "whale"
    assert first.get_title() == "left"
    assert not empty.images
    assert (shown(third) == picture(1)[0].double().numpy()[..., None]).all()


def test_axes_come_as_a_grid():
    figure, axes = axes_grid(2, 3)
    assert axes.shape == (2, 3)
    assert len(figure.axes) == 6
