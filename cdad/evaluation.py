"""Testing a model on the classes of a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .data import ClassData, Dataset, Sample, check_classes, read_sample
from .errors import DataError
from .metrics import evaluate_scores
from .model import ContinualModel
from .plots import SheetRow, contact_sheet
from .prediction import Prediction

log = logging.getLogger("cdad")


@dataclass(frozen=True)
class Decisions:
    """Images above a ``threshold`` and not: ``found`` of the defective ones and ``missed``, ``refused`` of the normal ones and ``passed``."""

    threshold: float
    found: int
    missed: int
    refused: int
    passed: int

    @property
    def precision(self) -> float:
        """Of those above, the share that is defective; nan of none."""
        return _share(self.found, self.found + self.refused)

    @property
    def recall(self) -> float:
        """Of the defective ones, the share that is found; nan of none."""
        return _share(self.found, self.found + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of both, 0 where nothing is found; nan where nothing is defective."""
        return _share(2 * self.found, 2 * self.found + self.missed + self.refused) if self.found + self.missed else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


@dataclass(frozen=True, eq=False)
class ClassEvaluation:
    """One class's test: ``measures`` (see `cdad.metrics.MEASURES`; of pixels nan where a defective image has no mask), and what
    they were computed from. Masks are uint8 0/1 [N,H,W] at the model's image size, all 0 where there is none."""

    name: str
    measures: dict[str, float]
    samples: tuple[Sample, ...]
    images: np.ndarray
    masks: np.ndarray
    prediction: Prediction

    @property
    def decisions(self) -> Decisions | None:
        """What the class's threshold decides (`ContinualModel.set_threshold`); None where it has none."""
        if self.prediction.threshold is None:
            return None
        defective, above = np.array([bool(sample.label) for sample in self.samples], bool), self.prediction.anomalous
        counts = [int((defective == label)[above == over].sum()) for label in (True, False) for over in (True, False)]
        return Decisions(self.prediction.threshold, *counts)

    def __repr__(self) -> str:
        measures = ", ".join(f"{name} {value:.3f}" for name, value in self.measures.items())
        return f"ClassEvaluation({self.name}: {len(self.samples)} images; {measures})"


def read_test(sample: Sample, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A test's image and its mask, all 0 where it has none. ImageError: an unreadable image or a mask of another size."""
    return read_sample(replace(sample, label=0) if sample.label and sample.mask_path is None else sample, size=size)


def evaluate_class(model: ContinualModel, data: ClassData, *, progress: bool = False) -> ClassEvaluation:
    """Test one class, which the model need not have learned: it is scored by the mean of all calibrations then. DataError: it has
    no test images; ImageError: an unreadable image or a mask of another size."""
    if not isinstance(data, ClassData):
        raise TypeError(f"one class is tested, ClassData as open_dataset() gives them, not {type(data).__name__}")
    _check_tested(data)
    size = model.config.image_size
    unmasked = [sample.label == 1 and sample.mask_path is None for sample in data.test]
    pairs = [read_test(sample, size) for sample in data.test]
    images = np.stack([image for image, _ in pairs])
    masks = np.stack([mask for _, mask in pairs])
    vanished = [str(s.mask_path) for s, mask in zip(data.test, masks, strict=True) if s.label and s.mask_path and not mask.any()]
    if vanished:
        log.warning("class %r: no pixel of %d masks marks a defect at %d pixels (%s): pixel measures do not know of these",
                    data.name, len(vanished), size, ", ".join(vanished[:3]) + (", ..." if len(vanished) > 3 else ""))  # fmt: skip
    labels = np.array([sample.label for sample in data.test])
    known = data.name if data.name in model.classes else None
    prediction = model.predict(images, known, progress=progress)
    pixels = (None, None) if any(unmasked) else (masks, prediction.maps)
    measures = evaluate_scores(labels, prediction.scores, *pixels)
    return ClassEvaluation(data.name, measures, data.test, images, masks, prediction)


def evaluate(
    model: ContinualModel,
    dataset: Dataset | Mapping[str, ClassData] | ClassData | Iterable[ClassData],
    classes: str | Iterable[str] | None = None,
    *,
    progress: bool = True,
) -> dict[str, ClassEvaluation]:
    """Test several classes, or the one of that name (by default all that the model has learned and the data set holds). A mapping's
    keys are their names, as in `ContinualModel.fit_task`.

    By default classes without test images are passed over, which is told.

    TypeError: what is no data set, such as its folder's path; DataError, before any class is tested: none to test, or one of ``classes``
    that is not in the data, that the model has not learned, or without test images. Else as `evaluate_class`, which tests classes
    that were not learned too.
    """
    if isinstance(model, str | os.PathLike):
        raise TypeError(f"a ContinualModel is tested, not a path: ContinualModel.load({os.fspath(model)!r}) reads one")
    dataset = as_dataset(dataset)
    if not model.classes:
        raise RuntimeError("the model has learned no task yet")
    if classes is None:
        names = [name for name in model.classes if name in dataset]
        if not names:
            learned, held = ", ".join(model.classes), ", ".join(dataset) or "none"
            raise DataError(f"the data set has no class that the model has learned: it has {held}, the model {learned}")
        tested = [name for name in names if dataset[name].test]
        if tested and len(tested) < len(names):
            log.warning("without test images, and passed over: %s", ", ".join(name for name in names if name not in tested))
            names = tested
    else:
        names = [classes] if isinstance(classes, str) else list(dict.fromkeys(classes))
        if isinstance(classes, set | frozenset):
            names.sort()
        check_classes(names, dataset)
        check_classes(names, model.classes, "among those that the model has learned")
    for name in names:
        _check_tested(dataset[name])
    bar = tqdm(names, "test", unit="class", disable=not progress, leave=False)
    return {name: evaluate_class(model, dataset[name], progress=progress) for name in bar}


def as_dataset(dataset: Dataset | Mapping[str, ClassData] | ClassData | Iterable[ClassData]) -> Mapping[str, ClassData]:
    """Classes by name. TypeError: what is no data set."""
    if isinstance(dataset, str | os.PathLike):
        raise TypeError(f"a data set is wanted, not a path: open_dataset({os.fspath(dataset)!r}) lists the images of a folder")
    if isinstance(dataset, ClassData):
        dataset = [dataset]
    if isinstance(dataset, Mapping):
        if all(isinstance(data, ClassData) for data in dataset.values()):
            return {name: data if data.name == name else replace(data, name=name) for name, data in dataset.items()}
    elif isinstance(dataset, Iterable):
        dataset = list(dataset)
        if all(isinstance(data, ClassData) for data in dataset):
            return Dataset(dataset)
    raise TypeError("a data set is wanted, as open_dataset() gives it: paths and arrays do not tell what is anomalous")


def _check_tested(data: ClassData) -> None:
    if not data.test:
        raise DataError(f"class {data.name!r} has no test images")


def write_contact_sheet(result: ClassEvaluation, path: str | os.PathLike, *, rows: int = 8) -> Path:
    """A picture of image, reconstruction, map and mask: one row for each defect kind in turn, then normal ones."""
    chosen = _choose(result.samples, rows)
    sheet_rows = [
        SheetRow(
            result.images[i],
            result.prediction.reconstructions[i],
            result.prediction.maps[i],
            result.masks[i] if result.samples[i].mask_path is not None else None,
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
