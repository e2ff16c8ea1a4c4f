"""Pictures of results, with Pillow and NumPy: anomaly maps, contact sheets, task matrices, loss curves."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from cdad.atomic import write_atomically
from cdad.metrics import square_task_matrix

# Ten colours evenly spaced along matplotlib's "inferno" (CC0), a map uniform in perceived lightness: dark is
# normal, bright is anomalous, also in grey print. Linear interpolation stays within 4% of the original.
_ANCHORS = np.array([
    (0, 0, 4), (27, 12, 66), (75, 12, 107), (120, 28, 109), (165, 44, 96),
    (207, 68, 70), (237, 105, 37), (251, 154, 6), (247, 208, 60), (252, 255, 164)], dtype=np.float64)
_CONTOUR = (0, 255, 190)  # a hue that the colour map does not hold
_PAPER, _INK, _FAINT = (252, 252, 252), (30, 32, 36), (120, 124, 130)
_GRID, _EMPTY, _LINE = (226, 228, 232), (236, 237, 240), (31, 92, 168)
_SUPERSAMPLING = 2  # lines and text of charts are drawn larger and reduced, Pillow does not smooth lines

COLUMNS = ("image", "reconstruction", "anomaly map", "mask")


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One test image on a contact sheet.

    ``image`` and ``reconstruction`` are [H,W,3], float in 0..1 or uint8; ``anomaly_map`` [H,W] is finite, of
    any scale and size; ``mask`` [H,W] is 0/1. All but the image may be None; the caption is one line.
    """

    image: np.ndarray
    reconstruction: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None
    mask: np.ndarray | None = None
    caption: str = ""


def colormap(values: ArrayLike) -> np.ndarray:
    """Colours, uint8 [H,W,3], of values [H,W]; clipped to 0..1, from black over red to pale yellow.

    Raises:
        ValueError: values are not [H,W] or not finite.
    """
    values = _plane(values, "values")
    return np.rint(_colours(np.clip(values, 0.0, 1.0))).astype(np.uint8)


def overlay(image: ArrayLike, anomaly_map: ArrayLike, alpha: float = 0.5, *,
            vmin: float = 0.0, vmax: float = 1.0) -> np.ndarray:
    """The colours of a map laid over its image, (1 - alpha) * image + alpha * colours.

    Args:
        image: [H,W,3], float in 0..1 or uint8.
        anomaly_map: [H,W], of the size of the image.
        alpha: weight of the map, in 0..1.
        vmin, vmax: the values with the first and the last colour, see :func:`shared_range`.

    Returns:
        uint8 [H,W,3].

    Raises:
        ValueError: shapes do not fit, values are not finite, or alpha or the range is wrong.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in 0..1, got {alpha!r}")
    picture = _pixels(image, "image").astype(np.float64)
    scaled = _scaled(_plane(anomaly_map, "anomaly_map"), vmin, vmax)
    if scaled.shape != picture.shape[:2]:
        raise ValueError(f"anomaly_map {scaled.shape} is not of the size of the image {picture.shape[:2]}")
    return np.rint((1.0 - alpha) * picture + alpha * _colours(scaled)).astype(np.uint8)


def shared_range(maps: Iterable[ArrayLike]) -> tuple[float, float]:
    """A range (vmin, vmax) to show maps in side by side: their 1st and 99.5th percentile, taken together.

    A few extreme pixels would otherwise leave all others dark. Maps [H,W] may differ in size.

    Raises:
        ValueError: there is no map, or a map is not [H,W] or not finite.
    """
    planes = [_plane(one, "anomaly_map").ravel() for one in maps]
    if not planes:
        raise ValueError("shared_range needs at least one map")
    low, high = np.percentile(np.concatenate(planes), (1.0, 99.5)).tolist()
    return (low, high) if high > low else (low, low + 1.0)


def contact_sheet(rows: Sequence[SheetRow], path: str | os.PathLike | None = None, *,
                  title: str | None = None, cell: int = 128, columns: Sequence[str] = COLUMNS,
                  vmin: float | None = None, vmax: float | None = None) -> Image.Image:
    """A table of pictures, one test image a row, with all maps in the same range of colours.

    The outline of the mask is drawn on the maps, a bar below shows the range. Pictures keep their aspect.

    Args:
        rows: what to show, at least one.
        path: where to save it; the suffix gives the format.
        title: a line above.
        cell: side of a picture in pixels, at least 32.
        columns: of "image", "reconstruction", "anomaly map", "overlay" and "mask".
        vmin, vmax: the range of the maps; by default that of :func:`shared_range`.

    Raises:
        ValueError: no row, an unknown column, a cell below 32 or an array of the wrong shape or not finite.
    """
    rows = list(rows)
    unknown = [name for name in columns if name not in _DRAW]
    if unknown or not columns:
        raise ValueError(f"columns must be some of {', '.join(_DRAW)}, got {', '.join(columns) or 'none'}")
    if not rows or cell < 32:
        raise ValueError("a contact sheet needs rows and cells of at least 32 pixels, "
                         f"got {len(rows)} rows and cells of {cell}")
    maps = [row.anomaly_map for row in rows if row.anomaly_map is not None]
    low, high = shared_range(maps) if maps else (0.0, 1.0)
    low, high = (low if vmin is None else vmin), (high if vmax is None else vmax)

    font = _font(min(max(10, cell // 10), 16))
    heading = _font(min(max(14, cell // 8), 22))
    line = _line_height(font)
    gap, margin = max(4, cell // 20), max(8, min(cell // 10, 16))
    with_bar = bool(maps) and bool({"anomaly map", "overlay"} & set(columns))
    width = 2 * margin + len(columns) * cell + (len(columns) - 1) * gap
    top = margin + (_line_height(heading) + gap if title else 0)
    pitch = line + cell + gap  # from one row to the next
    height = top + line + gap + len(rows) * pitch + (gap + line if with_bar else 0) + margin - gap
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, margin), _fit(title, heading, width - 2 * margin), _INK, heading)
    lefts = [margin + i * (cell + gap) for i in range(len(columns))]
    for x, name in zip(lefts, columns):
        draw.text((x + cell / 2, top), _fit(name, font, cell), _FAINT, font, anchor="ma")
    y = top + line + gap
    for row in rows:
        draw.text((margin, y), _fit(row.caption, font, width - 2 * margin), _INK, font)
        for x, name in zip(lefts, columns):
            sheet.paste(_boxed(_DRAW[name](row, cell, low, high), cell, font), (x, y + line))
        y += pitch
    if with_bar:
        _draw_bar(sheet, (margin, y + gap), width - 2 * margin, line, font, low, high)
    return _saved(sheet, path)


def matrix_image(task_matrix: ArrayLike, path: str | os.PathLike | None = None, *,
                 tasks: Sequence[str] | None = None, title: str | None = None,
                 digits: int = 3) -> Image.Image:
    """A task matrix R [N,N] as a table of numbers on colours; a row is a learned task, nan stays grey.

    Args:
        task_matrix: R[learned, evaluated], nan where not evaluated.
        path: where to save it; the suffix gives the format.
        tasks: the names of the tasks; by default their numbers.
        title: a line above.
        digits: decimals of the numbers.

    Raises:
        ValueError: the matrix is not square, or the number of names is another.
    """
    matrix = square_task_matrix(task_matrix)
    n = len(matrix)
    names = [str(i) for i in range(n)] if tasks is None else [str(task) for task in tasks]
    if len(names) != n:
        raise ValueError(f"{len(names)} task names for a matrix of {n} tasks")
    known = np.isfinite(matrix)
    low, high = (float(matrix[known].min()), float(matrix[known].max())) if known.any() else (0.0, 1.0)
    shades = _scaled(np.where(known, matrix, low), low, high if high > low else low + 1.0)
    colours = colormap(0.1 + 0.85 * shades)  # off the ends of the scale, where numbers are hard to read
    texts = [[f"{value:.{digits}f}" if np.isfinite(value) else "" for value in row] for row in matrix]

    font, heading = _font(13), _font(17)
    line, pitch, margin = _line_height(font), 34, 14
    name_width = math.ceil(max(font.getlength(name) for name in names))
    side = max(52, min(name_width, 96) + 8,
               *(math.ceil(font.getlength(text)) + 14 for row in texts for text in row))
    label = min(name_width, 160)
    left = margin + line + label + 10
    top = margin + (_line_height(heading) + 8 if title else 0) + 2 * line + 6
    right = max(left + n * side, left + math.ceil(font.getlength("evaluated task")),
                margin + min(640, math.ceil(heading.getlength(title or ""))))
    bottom = top + max(n * pitch, math.ceil(font.getlength("learned task")))
    image = Image.new("RGB", (right + margin, bottom + margin), _PAPER)
    draw = ImageDraw.Draw(image)
    if title:
        draw.text((margin, margin), _fit(title, heading, right - margin), _INK, heading)
    draw.text((left, top - 6 - 2 * line), "evaluated task", _FAINT, font)
    _draw_upright(image, "learned task", (margin - 2, top), font)
    for i in range(n):
        y = top + i * pitch
        draw.text((left + (i + 0.5) * side, top - 4), _fit(names[i], font, side - 6), _INK, font, anchor="md")
        draw.text((left - 8, y + pitch / 2), _fit(names[i], font, label), _INK, font, anchor="rm")
        for j in range(n):
            x = left + j * side
            shade = tuple(colours[i, j].tolist()) if known[i, j] else _EMPTY
            draw.rectangle((x, y, x + side - 2, y + pitch - 2), shade)
            bright = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 128
            draw.text((x + side / 2 - 1, y + pitch / 2 - 1), texts[i][j], _INK if bright else _PAPER, font,
                      anchor="mm")
    return _saved(image, path)


def loss_curve(path: str | os.PathLike | None, values: ArrayLike, *, title: str = "loss",
               size: tuple[int, int] = (720, 360)) -> Image.Image:
    """A line chart of a loss by step: the mean of the steps that share a pixel, their spread behind it.

    Args:
        path: where to save it, or None; the suffix gives the format.
        values: [steps]; values that are not finite leave a gap.
        title: a line above.
        size: width and height in pixels, at least (240, 160).

    Raises:
        ValueError: values are not one-dimensional or none of them is finite, or the size is too small.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).any():
        raise ValueError(f"a loss curve needs a vector with a finite value, got shape {values.shape}")
    if size[0] < 240 or size[1] < 160:
        raise ValueError(f"a chart needs at least 240 x 160 pixels, got {size[0]} x {size[1]}")
    scale = _SUPERSAMPLING
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), _PAPER)
    draw = ImageDraw.Draw(image)
    font, heading = _font(12 * scale), _font(15 * scale)
    finite = values[np.isfinite(values)]
    ticks = _ticks(float(finite.min()), float(finite.max()), 5)
    labels = [f"{tick:.6g}" for tick in ticks]
    left = 16 * scale + max(font.getlength(text) for text in labels) + 6 * scale
    right, top, bottom = (size[0] - 24) * scale, 40 * scale, (size[1] - 46) * scale
    draw.text((14 * scale, 10 * scale), _fit(title, heading, right), _INK, heading)

    def x_of(step: float) -> float:
        return left + (right - left) * step / max(len(values) - 1, 1)

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    for tick, text in zip(ticks, labels):
        draw.line((left, y_of(tick), right, y_of(tick)), _GRID, scale)
        draw.text((left - 6 * scale, y_of(tick)), text, _FAINT, font, anchor="rm")
    for tick in _ticks(0.0, max(len(values) - 1.0, 1.0), 6):
        if tick <= 1.005 * (len(values) - 1) and tick == int(tick):
            draw.text((x_of(tick), bottom + 6 * scale), f"{tick:.0f}", _FAINT, font, anchor="ma")
    draw.text(((left + right) / 2, (size[1] - 8) * scale), "step", _FAINT, font, anchor="md")

    n_bins = min(len(values), max(1, (size[0] - 60) // 2))
    points: list[tuple[float, float]] = []
    lines, spreads = [points], []
    for steps in np.array_split(np.arange(len(values)), n_bins):
        part = values[steps][np.isfinite(values[steps])]
        if not part.size:
            points = []
            lines.append(points)
            continue
        x = x_of(steps.mean())
        spreads.append((x, y_of(part.min()), x, y_of(part.max())))
        points.append((x, y_of(part.mean())))
    for spread in spreads:
        draw.line(spread, tuple((3 * p + c) // 4 for p, c in zip(_PAPER, _LINE)), 4 * scale)
    for points in lines:
        if len(points) > 1:
            draw.line(points, _LINE, 2 * scale, joint="curve")
        elif points:
            (x, y), r = points[0], 2 * scale
            draw.ellipse((x - r, y - r, x + r, y + r), _LINE)
    return _saved(image.resize(size, Image.Resampling.LANCZOS), path)


def _map_cell(row: SheetRow, cell: int, low: float, high: float) -> Image.Image | None:
    """The map in colours, with the outline of the mask."""
    if row.anomaly_map is None:
        return None
    plane = Image.fromarray(_plane(row.anomaly_map, "anomaly_map").astype(np.float32))
    # The values are resized, not their colours: a mix of two colours is not on the scale.
    resized = np.asarray(plane.resize(_fitted(plane.size, cell), Image.Resampling.BILINEAR))
    return _outlined(colormap(_scaled(resized.astype(np.float64), low, high)), row.mask)


def _overlay_cell(row: SheetRow, cell: int, low: float, high: float) -> Image.Image | None:
    if row.anomaly_map is None:
        return None
    picture = _picture(row.image, "image", cell)
    plane = Image.fromarray(_plane(row.anomaly_map, "anomaly_map").astype(np.float32))
    resized = np.asarray(plane.resize(picture.size, Image.Resampling.BILINEAR))
    return _outlined(overlay(np.asarray(picture), resized, vmin=low, vmax=high), row.mask)


def _mask_cell(row: SheetRow, cell: int, low: float, high: float) -> Image.Image | None:
    if row.mask is None:
        return None
    mask = Image.fromarray(np.where(_plane(row.mask, "mask") > 0, 255, 0).astype(np.uint8))
    return mask.resize(_fitted(mask.size, cell), Image.Resampling.NEAREST).convert("RGB")


def _image_cell(row: SheetRow, cell: int, low: float, high: float) -> Image.Image | None:
    return _picture(row.image, "image", cell)


def _reconstruction_cell(row: SheetRow, cell: int, low: float, high: float) -> Image.Image | None:
    return None if row.reconstruction is None else _picture(row.reconstruction, "reconstruction", cell)


_DRAW = {"image": _image_cell, "reconstruction": _reconstruction_cell, "anomaly map": _map_cell,
         "overlay": _overlay_cell, "mask": _mask_cell}


def _picture(array: ArrayLike, name: str, cell: int) -> Image.Image:
    image = Image.fromarray(_pixels(array, name))
    return image.resize(_fitted(image.size, cell), Image.Resampling.LANCZOS)


def _outlined(colours: np.ndarray, mask: ArrayLike | None) -> Image.Image:
    """Draw the one pixel around the mask's regions, outside of them: it hides no pixel of a defect."""
    if mask is not None:
        height, width = colours.shape[:2]
        inside = np.asarray(Image.fromarray((_plane(mask, "mask") > 0).astype(np.uint8)).resize(
            (width, height), Image.Resampling.NEAREST), dtype=bool)
        padded = np.pad(inside, 1)
        near = np.zeros_like(inside)
        for dy in range(3):
            for dx in range(3):
                near |= padded[dy:dy + height, dx:dx + width]
        colours = colours.copy()
        colours[near & ~inside] = _CONTOUR
    return Image.fromarray(colours)


def _boxed(picture: Image.Image | None, cell: int, font: ImageFont.ImageFont) -> Image.Image:
    """Centre a picture in its cell; a missing one is a grey cell with a dash."""
    box = Image.new("RGB", (cell, cell), _EMPTY)
    if picture is None:
        ImageDraw.Draw(box).text((cell / 2, cell / 2), "-", _FAINT, font, anchor="mm")
    else:
        box.paste(picture, ((cell - picture.width) // 2, (cell - picture.height) // 2))
    return box


def _draw_bar(sheet: Image.Image, corner: tuple[int, int], width: int, height: int, font: ImageFont.ImageFont,
              low: float, high: float) -> None:
    """The range of colours with its two ends, centred below the sheet."""
    draw = ImageDraw.Draw(sheet)
    ends = f"{low:.3g}", f"{high:.3g}"
    before, after = (math.ceil(font.getlength(text)) + 6 for text in ends)
    bar = max(16, min(width - before - after, width // 2))
    x, y = corner[0] + max(0, (width - before - bar - after) // 2), corner[1]
    strip = np.broadcast_to(np.linspace(0.0, 1.0, bar), (max(4, height - 6), bar))
    draw.text((x, y + height / 2), ends[0], _INK, font, anchor="lm")
    sheet.paste(Image.fromarray(colormap(strip)), (x + before, y + 3))
    draw.text((x + before + bar + 6, y + height / 2), ends[1], _INK, font, anchor="lm")


def _draw_upright(image: Image.Image, text: str, corner: tuple[int, int], font: ImageFont.ImageFont) -> None:
    """Text that runs upwards, its box's upper left corner given."""
    strip = Image.new("RGB", (math.ceil(font.getlength(text)), _line_height(font)), _PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, _FAINT, font)
    image.paste(strip.transpose(Image.Transpose.ROTATE_90), corner)


def _colours(values: np.ndarray) -> np.ndarray:
    """float64 [..., 3] in 0..255 of values in 0..1."""
    at = np.linspace(0.0, 1.0, len(_ANCHORS))
    return np.stack([np.interp(values, at, channel) for channel in _ANCHORS.T], axis=-1)


def _scaled(plane: np.ndarray, vmin: float, vmax: float) -> np.ndarray:
    if not (math.isfinite(vmin) and math.isfinite(vmax) and vmin < vmax):
        raise ValueError(f"vmin must be below vmax, both finite, got {vmin!r} and {vmax!r}")
    return np.clip((plane - vmin) / (vmax - vmin), 0.0, 1.0)


def _plane(array: ArrayLike, name: str) -> np.ndarray:
    plane = np.asarray(array, dtype=np.float64)
    if plane.ndim != 2 or not plane.size:
        raise ValueError(f"{name} must be [H,W], got shape {plane.shape}")
    if not np.isfinite(plane).all():
        raise ValueError(f"{name} holds values that are not finite")
    return plane


def _pixels(array: ArrayLike, name: str) -> np.ndarray:
    """uint8 [H,W,3]; floats are clipped to 0..1, a decoder may overshoot a little."""
    pixels = np.asarray(array)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{name} must be [H,W,3], got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not np.isfinite(pixels).all():
        raise ValueError(f"{name} must be uint8 or finite floats in 0..1, got {pixels.dtype}")
    return np.rint(255.0 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8)


def _fitted(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """The (width, height) inside a cell that keeps the aspect."""
    longest = max(size)
    return max(1, round(size[0] * cell / longest)), max(1, round(size[1] * cell / longest))


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that span low..high."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * min(m for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _line_height(font: ImageFont.ImageFont) -> int:
    box = font.getbbox("Ag|")
    return math.ceil(box[3]) + 3


def _fit(text: str, font: ImageFont.ImageFont, width: float) -> str:
    """One line of text, cut with dots where it is longer than width pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _saved(image: Image.Image, path: str | os.PathLike | None) -> Image.Image:
    if path is not None:
        suffix = os.path.splitext(path)[1].lower()  # of a class called "." the name is "..png", which has none
        if suffix and suffix not in Image.registered_extensions():
            raise ValueError(f"unknown file extension: {suffix}")
        content = io.BytesIO()
        image.save(content, Image.registered_extensions()[suffix] if suffix else "PNG")
        write_atomically(path, content.getvalue())
    return image
