"""Testing a model on the classes of a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .data import ClassData, Dataset, Sample, read_sample
from .errors import DataError
from .metrics import evaluate_scores
from .model import ContinualModel, Prediction
from .plots import SheetRow, contact_sheet


@dataclass(frozen=True)
class ClassEvaluation:
    """One class's test: ``measures`` (see `cdad.metrics.MEASURES`), and what they were computed from. Masks are
    uint8 0/1 [N,H,W] at the model's image size."""

    name: str
    measures: dict[str, float]
    samples: tuple[Sample, ...]
    images: np.ndarray
    masks: np.ndarray
    prediction: Prediction


def evaluate_class(model: ContinualModel, data: ClassData, *, progress: bool = False) -> ClassEvaluation:
    """Test one class. DataError: it has no test images; ImageError: an unreadable image or a mask of another size."""
    if not data.test:
        raise DataError(f"class {data.name!r} has no test images")
    size = model.config.image_size
    pairs = [read_sample(sample, size=size) for sample in data.test]
    images = np.stack([image for image, _ in pairs])
    masks = np.stack([mask for _, mask in pairs])
    labels = np.array([sample.label for sample in data.test])
    known = data.name if data.name in model.classes else None
    prediction = model.predict(images, known, progress=progress)
    measures = evaluate_scores(labels, prediction.scores, masks, prediction.maps)
    return ClassEvaluation(data.name, measures, data.test, images, masks, prediction)


def evaluate(
    model: ContinualModel,
    dataset: Dataset,
    classes: Sequence[str] | None = None,
    *,
    progress: bool = True,
) -> dict[str, ClassEvaluation]:
    """Test several classes (all that the model has learned and the data set holds, by default)."""
    names = list(classes) if classes is not None else [name for name in model.classes if name in dataset]
    bar = tqdm(names, "test", unit="class", disable=not progress, leave=False)
    return {name: evaluate_class(model, dataset[name], progress=progress) for name in bar}


def write_contact_sheet(result: ClassEvaluation, path: str | os.PathLike, *, rows: int = 8) -> Path:
    """A picture of image, reconstruction, map and mask: one row for each defect kind in turn, then normal ones."""
    chosen = _choose(result.samples, rows)
    sheet_rows = [
        SheetRow(
            result.images[i],
            result.prediction.reconstructions[i],
            result.prediction.maps[i],
            result.masks[i] if result.samples[i].label else None,
            f"{result.samples[i].defect or 'good'} {result.prediction.scores[i]:.2f}",
        )
        for i in chosen
    ]
    m = result.measures
    title = f"{result.name}: image AUROC {m['image_auroc']:.3f}, pixel AUROC {m['pixel_auroc']:.3f}"
    low, high = np.percentile(result.prediction.maps, [50.0, 99.8])
    contact_sheet(sheet_rows, path, title=title, vmin=float(low), vmax=float(max(high, low + 1e-6)))
    return Path(path)


def _choose(samples: Sequence[Sample], rows: int) -> list[int]:
    """Indices of up to ``rows`` samples: the defects in turn, and a quarter of the rows normal."""
    normal = [i for i, s in enumerate(samples) if not s.label]
    kinds: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if sample.label:
            kinds.setdefault(sample.defect, []).append(i)
    room = rows - min(len(normal), max(1, rows // 4))
    chosen: list[int] = []
    for depth in range(max((len(v) for v in kinds.values()), default=0)):
        chosen += [indices[depth] for indices in kinds.values() if depth < len(indices)]
    chosen = sorted(chosen[:room])
    return chosen + normal[: rows - len(chosen)]
