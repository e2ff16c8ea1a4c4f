"""Pictures of results: the pixels that carry a meaning, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cdad import plots
from cdad.plots import SheetRow

CONTOUR = (0, 255, 190)


def row(size=(40, 40), low=0.0, high=1.0, **options):
    anomaly_map = np.full(size, low)
    anomaly_map[10:20, 10:30] = high
    mask = np.zeros(size, dtype=np.uint8)
    mask[10:20, 10:30] = 1
    given = {"image": np.full((*size, 3), 0.5), "reconstruction": np.full((*size, 3), 0.25),
             "anomaly_map": anomaly_map, "mask": mask, "caption": "crack 0.83"}
    return SheetRow(**(given | options))


def holds(image, colour):
    return bool((np.asarray(image) == colour).all(axis=-1).any())


def cell_of(sheet, column, cell=64, columns=4):
    """The picture of a column in the last row of a sheet whose maps have a bar below."""
    pixels = np.asarray(sheet)
    gap = max(4, cell // 20)
    margin = (pixels.shape[1] - columns * cell - (columns - 1) * gap) // 2
    left = margin + column * (cell + gap)
    marked = np.flatnonzero((pixels[:, margin] == 128).all(axis=-1))  # the mid grey image of row()
    return pixels[marked[-1] + 1 - cell:marked[-1] + 1, left:left + cell]


def test_colormap_is_inferno():
    cv2 = pytest.importorskip("cv2")
    ramp = np.arange(256, dtype=np.uint8)[None]
    expected = cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    measured = plots.colormap(ramp / 255.0)
    assert measured.dtype == np.uint8 and measured.shape == (1, 256, 3)
    assert np.abs(measured.astype(int) - expected).max() <= 10


def test_colormap_rises_in_lightness_and_clips():
    colours = plots.colormap(np.linspace(0, 1, 101)[None]).astype(float)
    assert (np.diff(colours[0] @ (0.2126, 0.7152, 0.0722)) > 0).all()
    assert (plots.colormap([[-3.0, 7.0]]) == plots.colormap([[0.0, 1.0]])).all()


def test_overlay_blends():
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    values = np.array([[0.0, 2.0, 4.0], [4.0, 2.0, 0.0]])
    colours = plots.colormap(values / 4).astype(float)
    assert (plots.overlay(image, values, 0.0, vmax=4.0) == 100).all()
    assert (plots.overlay(image, values, 1.0, vmax=4.0) == colours).all()
    blended = plots.overlay(image, values, 0.25, vmax=4.0)
    assert np.abs(blended - (75 + 0.25 * colours)).max() <= 1
    assert (plots.overlay(image / 255.0, values, 0.25, vmax=4.0) == blended).all()
    assert (image == 100).all()


def test_shared_range_ignores_single_extremes():
    base = np.linspace(0, 1, 10_000).reshape(100, 100)
    spoiled = base.copy()
    spoiled[0, 0] = 1e6
    low, high = plots.shared_range([base, spoiled[:50]])
    assert 0.0 < low < 0.02 and 0.9 < high < 1.0
    assert plots.shared_range([np.full((2, 2), 3.0)]) == (3.0, 4.0)
    with pytest.raises(ValueError, match="at least one"):
        plots.shared_range([])


def test_sheet_shows_every_column():
    sheet = plots.contact_sheet([row()], cell=64, title="bottle")
    picture, reconstruction, anomaly, mask = (cell_of(sheet, i) for i in range(4))
    assert (picture == 128).all()
    assert (reconstruction == 64).all()
    assert (anomaly[2, 2] == plots.colormap([[0.0]])[0, 0]).all()
    assert (anomaly[24, 32] == plots.colormap([[1.0]])[0, 0]).all()
    assert (mask[24, 32] == 255).all() and (mask[2, 2] == 0).all()


def test_contour_surrounds_the_mask_on_the_map_only():
    sheet = plots.contact_sheet([row()], cell=80)  # two pixels a pixel: the mask is [20:40, 20:60]
    expected = np.zeros((80, 80), dtype=bool)
    expected[19:41, 19:61] = True
    expected[20:40, 20:60] = False
    assert ((cell_of(sheet, 2, 80) == CONTOUR).all(axis=-1) == expected).all()
    assert not holds(cell_of(sheet, 3, 80), CONTOUR)
    overlaid = plots.contact_sheet([row()], cell=80, columns=("image", "overlay"))
    assert ((cell_of(overlaid, 1, 80, 2) == CONTOUR).all(axis=-1) == expected).all()
    assert not holds(plots.contact_sheet([row(mask=None)], cell=80), CONTOUR)


def test_maps_of_a_sheet_share_their_range():
    weak, strong = row(high=0.2), row(high=1.0)
    alone = cell_of(plots.contact_sheet([weak], cell=64), 2)[24, 32]
    beside = cell_of(plots.contact_sheet([strong, weak], cell=64), 2)[24, 32]
    fixed = cell_of(plots.contact_sheet([weak], cell=64, vmin=0.0, vmax=0.4), 2)[24, 32]
    assert (alone == plots.colormap([[1.0]])[0, 0]).all()
    assert (beside == plots.colormap([[0.2]])[0, 0]).all()
    assert (fixed == plots.colormap([[0.5]])[0, 0]).all()


def test_sheet_without_optional_parts_and_with_another_aspect(tmp_path):
    bare = plots.contact_sheet([SheetRow(np.full((20, 40, 3), 128, dtype=np.uint8))], cell=64)
    pixels = np.asarray(bare)
    assert (pixels == 128).all(axis=-1).sum() == 32 * 64  # half a cell, nothing else in mid grey
    path = tmp_path / "sheet.png"
    sheet = plots.contact_sheet([row((20, 40)), row()], path, cell=48, columns=("image", "anomaly map"))
    with Image.open(path) as saved:
        assert (np.asarray(saved) == np.asarray(sheet)).all()


def test_captions_and_titles_are_drawn_and_cut_to_the_sheet():
    plain = plots.contact_sheet([row(caption="")], cell=64)
    captioned = plots.contact_sheet([row(caption="crack 0.83 " * 50)], cell=64)
    assert plain.size == captioned.size
    differs = (np.asarray(plain) != np.asarray(captioned)).any(axis=(0, 2))
    assert differs.any() and not differs[-8:].any()


@pytest.mark.parametrize("rows, options, message", [
    ([], {}, "got 0 rows"),
    ([row()], {"cell": 8}, "cells of 8"),
    ([row()], {"columns": ("image", "map")}, "image, map"),
    ([row()], {"columns": ()}, "got none"),
    ([row()], {"vmin": 2.0, "vmax": 1.0}, "vmin must be below vmax"),
    ([row(image=np.zeros((4, 4)))], {}, r"image must be \[H,W,3\]"),
    ([row(image=np.zeros((4, 4, 3), dtype=int))], {}, "int64"),
    ([row(reconstruction=np.full((4, 4, 3), np.nan))], {}, "reconstruction must be uint8 or finite"),
    ([row(anomaly_map=np.full((4, 4), np.inf))], {}, "anomaly_map holds values that are not finite"),
    ([row(mask=np.zeros((1, 4, 4)))], {}, r"mask must be \[H,W\], got shape \(1, 4, 4\)"),
])
def test_sheet_refuses(rows, options, message):
    with pytest.raises(ValueError, match=message):
        plots.contact_sheet(rows, **options)


def test_overlay_and_colormap_refuse():
    image = np.zeros((4, 4, 3))
    with pytest.raises(ValueError, match="alpha"):
        plots.overlay(image, np.zeros((4, 4)), 1.5)
    with pytest.raises(ValueError, match=r"\(4, 5\) is not of the size of the image \(4, 4\)"):
        plots.overlay(image, np.zeros((4, 5)))
    with pytest.raises(ValueError, match="values must be"):
        plots.colormap(np.zeros(3))


def test_matrix_image_colours_the_known_entries(tmp_path):
    matrix = np.array([[0.5, np.nan], [0.9, 0.7]])
    image = plots.matrix_image(matrix, tmp_path / "matrix.png", tasks=("base", "tile"), title="image AUROC")
    for share in (0.0, 0.5, 1.0):
        assert holds(image, plots.colormap([[0.1 + 0.85 * share]])[0, 0])
    assert not holds(image, plots.colormap([[0.1 + 0.85 * 0.25]])[0, 0])
    assert (tmp_path / "matrix.png").stat().st_size > 0
    plots.matrix_image(matrix, tmp_path / "..png")  # of what is called "."
    assert Image.open(tmp_path / "..png").format == "PNG"
    more_digits = plots.matrix_image(matrix, tasks=("base", "tile"), title="image AUROC", digits=8)
    assert more_digits.width > image.width  # the numbers are drawn, and fit
    assert not holds(plots.matrix_image([[np.nan]]), plots.colormap([[0.1]])[0, 0])
    with pytest.raises(ValueError, match="1 task names for a matrix of 2"):
        plots.matrix_image(matrix, tasks=("base",))
    with pytest.raises(ValueError, match="square"):
        plots.matrix_image(matrix[:1])


def line_height(image, step, steps):
    """The height in pixels of the loss line at a step, from the bottom."""
    dark = np.asarray(image).astype(int)
    blue = (dark[:, :, 2] - dark[:, :, 0] > 100)
    columns = np.flatnonzero(blue.any(axis=0))
    at = round(columns[0] + (columns[-1] - columns[0]) * step / (steps - 1))
    return image.height - np.flatnonzero(blue[:, at]).mean()


def test_loss_curve_follows_the_values(tmp_path):
    path = tmp_path / "loss.png"
    image = plots.loss_curve(path, np.linspace(1.0, 0.0, 11), size=(320, 200))
    assert image.size == (320, 200) and path.exists()
    heights = [line_height(image, step, 11) for step in (1, 5, 9)]
    assert heights[0] > heights[1] > heights[2]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=2)


def test_loss_curve_of_many_steps_gaps_and_one_value():
    values = np.tile([0.0, 1.0], 50_000)
    image = plots.loss_curve(None, values, size=(320, 200))
    assert line_height(image, 50, 100) == pytest.approx((46 + 160) / 2, abs=3)  # the mean
    values[40_000:60_000] = np.nan
    pixels = np.asarray(plots.loss_curve(None, values, size=(320, 200))).astype(int)
    blue = (pixels[:, :, 2] - pixels[:, :, 0] > 20).any(axis=0)
    assert not blue[160:170].any() and blue[60:100].all()
    assert holds(plots.loss_curve(None, [0.5], size=(320, 200)), (31, 92, 168))
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="loss curve needs"):
            plots.loss_curve(None, bad)
    with pytest.raises(ValueError, match="got 100 x 200"):
        plots.loss_curve(None, [1.0], size=(100, 200))
