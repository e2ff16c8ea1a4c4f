"""`ContinualModel`: learn product after product, predict any of them."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from . import _core
from .autoencoder import Autoencoder
from .checkpoint import Checkpoint
from .config import Config, ScoringConfig, preset
from .data import MixedBatches, TrainingBatches, ahead, load_images
from .data.ahead import chunked
from .data.images import source_key
from .data.inputs import as_classes, as_images, check_path
from .data.records import ClassData, ImageLike, MemoryImage, spread
from .drawing import Drawing
from .errors import CheckpointError, DataError
from .exclusion import Exclusion
from .features import FeatureDistance
from .memory_bank import BANK_IMAGES
from .model_files import restore, save_model
from .parallel import DataParallel
from .prediction import Prediction
from .programs import Programs
from .results import format_table
from .scoring import Calibration, image_scores, score_maps
from .strategies import make_strategy
from .text import empty_prompt_context
from .thresholds import Threshold, check_quantile
from .weights import load_part

log = logging.getLogger("cdad")

# Above this, another image's condition serves a model as well as the image's own.
_IGNORED = 0.98

# Characters of a line of what a model says of itself.
_LINE = 200

Task = Mapping[str, Iterable[ImageLike]]


@dataclass(frozen=True)
class StepReport:
    """What a callback is told after each training step: 0-based ``step`` of ``steps`` in this task, losses (under
    `DataParallel` of this process's part), rate."""

    task: int
    step: int
    steps: int
    loss: float
    loss_cdm: float
    loss_amn: float
    grad_norm: float
    lr_scale: float


class ContinualModel:
    """One latent-diffusion model that learns product after product from normal images alone.

    >>> model = ContinualModel("small")                            # doctest: +SKIP
    >>> model.fit_task({"bottle": bottles, "screw": screws})       # doctest: +SKIP
    >>> model.fit_task({"toothbrush": toothbrushes})               # doctest: +SKIP
    >>> model.predict(images).scores                               # doctest: +SKIP

    ``config``: a `Config` or a preset's name. ``device``: where weights lie and networks run, "cpu" or "cuda" (see
    `cdad.set_device`, the default); results on one are those on the other up to rounding, and files are the same.
    RuntimeError: there is no such device, and why. ``parallel``: other processes train with this one (`DataParallel`).
    Predictions may run in several threads at once; `fit_task` is
    exclusive, and a second one meanwhile raises RuntimeError.
    """

    def __init__(
        self,
        config: Config | str = "small",
        *,
        device: str | None = None,
        parallel: DataParallel | None = None,
        _load_weights: bool = True,
    ):
        if not isinstance(config, Config | str):
            raise TypeError(f"a Config or a preset's name is wanted, not {type(config).__name__}: preset(name).updated(changes)")
        self.config = preset(config) if isinstance(config, str) else config
        self.parallel = parallel
        c = self.config
        self._part = range(c.training.batch_size) if parallel is None else parallel.part(c.training.batch_size)
        batch = c.scoring.batch_size
        self.params = _core.Params(device)
        self.autoencoder = Autoencoder(
            c.autoencoder, c.image_size, batch, load=_load_weights, tf32=c.tf32, beside=self.params
        )
        context = self._make_context(_load_weights)
        self.strategy = make_strategy(c.continual)
        self._trainer = _core.Trainer(
            self.params,
            c.denoiser(),
            len(self._part),
            c.optimizer(),
            c.seed,
            distill=self.strategy.distils,
            share=parallel and (parallel.rank, parallel.world_size),
            **c.batching(),
        )
        self._collected()  # a slip is told now, not after the first task
        if _load_weights:
            self._start_from_files()
        self.drawing = Drawing(c, self.params, self.autoencoder, self._trainer, context)
        self.calibrations: dict[str, Calibration] = {}
        self.thresholds: dict[str, Threshold] = {}
        self._stale_threshold: tuple[Any, ...] | None = None  # of which `predict` has warned last
        self._pooled: tuple[tuple[Calibration, ...], Calibration] | None = None
        self.ledger: list[dict[str, Any]] = []
        self.progress: dict[str, Any] = {}
        self._steps_before = 0  # the trainer's steps when the task began
        self.predict_only = False  # without what learning needs: see `load`
        self._use = Exclusion()

    def _start_from_files(self) -> None:
        """Start from the files that the configuration names, where it names any."""
        unet, amn = self.config.unet, self.config.amn
        if unet.weights:
            load_part(self.params, unet.weights, "unet", ema=unet.ema)
        if amn.weights and self.config.condition == "amn":
            load_part(self.params, amn.weights, "amn")
        if self.config.training.ema_decay > 0:
            self._trainer.set_block("ema", self._trainer.block("weights"))

    def _make_context(self, load: bool) -> np.ndarray | None:
        unet = self.config.unet
        if unet.context_dim == 0:
            return None
        if not load:  # it comes with the checkpoint
            return np.zeros((unet.context_length, unet.context_dim), np.float32)
        return empty_prompt_context(self.config.text, unet.context_dim, unet.context_length, self.params.device)

    # ---- what is known ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        c, progress = self.config, self.progress
        millions = sum(map(math.prod, self.params.shapes().values())) / 1e6
        text = f"{c.preset}, {c.image_size} pixels, {millions:.3g} M parameters, strategy {c.continual.strategy}, on {self.params.device}"
        tasks = " / ".join(", ".join(task["classes"]) for task in self.ledger)
        lines = [f"{len(self.ledger)} task{'s' * (len(self.ledger) != 1)} learned{': ' * bool(tasks)}{tasks}"]
        if progress.get("step"):  # one that was stopped before its first is given up by another
            lines.append(f"within task {len(self.ledger) + 1}: {', '.join(progress['classes'])}, {progress['step']} steps done")
        if self.predict_only:
            lines.append("for predictions alone")
        return "\n  ".join([f"ContinualModel({text})", *(line if len(line) <= _LINE else line[: _LINE - 3] + "..." for line in lines)])

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class learned so far, in order."""
        return tuple(name for task in self.ledger for name in task["classes"])

    @property
    def features(self) -> FeatureDistance:
        """The backbone of the scores; its ``name`` says which features are used."""
        return self.drawing.features

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes by purpose, known before anything runs. ``workspace``: in which every network runs, a training step as well as
        the parts of a prediction, one at a time: as much as the largest takes; the CPU has memory behind it only as far as it was
        used. Of training: parameters, their moving average and, while a task's steps run, gradients (where all are held at once),
        moments (of what the task moves) and update (what projections work in). Of drawing and scoring: condition, autoencoder and,
        once `features` was used, backbone (their weights). ``strategy``: what it keeps now. `cdad.plan` gives this and more without making a model."""
        found = self._trainer.memory_bytes | {"workspace": self.params.workspace_bytes} | self.autoencoder.memory_bytes
        return found | self.drawing.memory_bytes | {"strategy": self.strategy.memory_bytes}

    @property
    def workspace_needs(self) -> dict[str, int]:
        """Bytes that each network takes of the workspace: a training ``step``, ``encode``, ``decode``, the ``sampler`` and, once
        `features` was used, ``compare``."""
        encode, decode = (programs.memory_bytes for programs in self.autoencoder.programs)
        return {"step": self._trainer.memory_bytes["workspace"], "encode": encode, "decode": decode} | self.drawing.workspace_needs

    @property
    def bases(self) -> dict[str, np.ndarray]:
        """The significant representations {weight: U [d, rank]} that the strategy keeps; {} where it keeps none."""
        return getattr(self.strategy, "bases", {})

    # ---- training -----------------------------------------------------------------------------------------

    def fit_task(
        self,
        task: Task | ClassData | Iterable[ClassData] | Iterable[ImageLike],
        *,
        progress: bool = True,
        callback: Callable[[StepReport], None] | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        """Learn the next task from normal images alone.

        ``task``: {class: images}, `ClassData`, a list of them, a `Dataset`, or the images of one class. Images are paths, arrays
        [N,H,W,3], or lists of paths, arrays and PIL images as `predict` takes them, which train to the bits of the same files and
        are not to change meanwhile. ``checkpoint``: a file that is written every ``checkpoint_seconds`` and at the end, the one
        before it being kept beside it (`previous_of`); after a load, the same call goes on where it stood, to the same bits: with
        files of the same names, wherever they lie, or the same pixels in memory. DataError: a class without images or learned
        before, or images in memory for "joint"; ImageError: a file that is no image; TrainingError: a loss or gradient that is
        not finite (weights are as before that step, unless the message says that a part was updated: with
        ``training.clip_norm`` 0 and ``training.accumulate`` 1 gradients are used as they come).
        """
        with self._use.changing():
            classes = as_classes(task, len(self.ledger))
            # What its images are known by: a task goes on with those that it began with, and in all processes with the same.
            keys = [[data.name, [source_key(source) for source in data.train]] for data in classes]
            if self.parallel is not None:
                self.parallel.check([self.config.to_dict(), self._trainer.n_steps, keys], self.params.device)
                if self.parallel.rank > 0:
                    progress, checkpoint = False, None
            if checkpoint is not None:
                _check_writable(checkpoint)
            self._fit(classes, zlib.crc32(json.dumps(keys).encode()), progress, callback, checkpoint, checkpoint_seconds)

    def _fit(self, classes, images: int, progress, callback, checkpoint, checkpoint_seconds) -> None:
        """``images``: a checksum of what the task's images are known by."""
        names = [c.name for c in classes]
        for name in names:
            if name in self.classes:
                raise DataError(f"class {name!r} was learned before; a task brings new classes")
        if self.progress and self.progress["step"] == 0:  # that task was given up before it began
            if self.progress["classes"] != names or self.progress.get("images", images) != images:
                self.progress = {}
        if self.progress and self.progress["classes"] != names:
            raise CheckpointError(
                f"the model is in the middle of the task {self.progress['classes']}, not of {names}: finish that one first, or load a "
                "file that was saved before it"
            )
        if self.progress and self.progress.get("images", images) != images:
            raise CheckpointError(
                f"the model is in the middle of the task {names}, which began with images of other names or, in memory, other "
                "pixels: finish it with these, or load a file that was saved before it"
            )
        config, t, index = self.config, self.config.training, len(self.ledger)
        if config.scoring.calibrate:
            _ = self.features  # a backbone's file that is missing is told of before training, not after
        if self.predict_only:
            raise CheckpointError(
                "the model was loaded to predict: load it whole, or let consolidate() take what its strategy "
                f"{config.continual.strategy!r} needs from the images of what it has learned"
            )
        if index > 0 and not self.strategy.ready:
            raise CheckpointError(
                f"the strategy {config.continual.strategy!r} keeps something of each task, and this model learned its tasks "
                "under another one, or with more of it frozen: consolidate() takes it from their images"
            )
        trained = self.strategy.training_classes(classes)
        batches = self.strategy.batches(self._training_batches(trained, t.batch_size, config.seed + 7919 * index))
        steps = t.task_steps(index, len(trained), sum(len(data.train) for data in trained))
        if not self.progress:
            if index == 0:
                self.autoencoder.measure(load_images(batches.sources[:: max(1, len(batches.sources) // 256)], config.image_size))
            self._steps_before = self._trainer.n_steps  # first: a save between the two would count the steps of the last task
            self.progress = {"classes": names, "images": images, "step": 0, "seconds": 0.0}
        self.strategy.before_task(self, classes, index, self.progress["step"], progress)
        if self.parallel is not None:  # gradients in coordinates of other directions are no summands
            kept = {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in self.strategy.agreed().items()}
            self.parallel.check(kept, self.params.device)
        latents = self._latents(batches, progress)
        self._train(batches, latents, steps, index, progress, callback, checkpoint, checkpoint_seconds)
        self._trainer.reset()  # the memory of its moments, for what follows
        entry = {"classes": names, "steps": steps, "seconds": round(self.progress["seconds"], 1)}
        if config.condition != "none" and len(batches.sources) > 1:
            ratio = self._condition_ratio(batches.sources)
            entry["condition_ratio"] = round(ratio, 4)
            if ratio > _IGNORED:
                log.warning(
                    "the model all but ignores its condition (x0 error, own against another's: %.3f): train longer", ratio
                )
        calibrations = self._calibrate(trained)
        # Last, and with the ledger: a task that is interrupted before is not counted, and not counted twice. No call stands between,
        # at whose end a signal's handler could find the task both learned and in progress.
        entry |= self.strategy.after_task(self, classes, progress)
        self.ledger, self.calibrations, self.progress = [*self.ledger, entry], self.calibrations | calibrations, {}
        if checkpoint is not None:
            self.save(checkpoint, keep_previous=True)

    def consolidate(self, task: Task | ClassData | Iterable[ClassData], *, progress: bool = True) -> None:
        """Take what the strategy keeps (bases, importances, stored images) from the normal images of all classes
        that the model learned under another strategy: several strategies can go on from one first task. Or of what a model
        that was loaded to predict has learned.

        ``task``: as in `fit_task`, but for images alone, which do not tell the class.
        ValueError: a class that was not learned, or one that was and is missing; CheckpointError: the strategy has to see the
        training itself ("si");
        RuntimeError: the model is training, or in the middle of a task, or the strategy has what it needs.
        """
        with self._use.changing():
            if self.progress.get("step"):  # before its first one, weights are what the tasks left
                raise RuntimeError("model is in the middle of a task: finish it by fit_task, or load a file saved before it")
            classes = as_classes(task, None)
            for data in classes:
                self.check_learned(data.name)
            if self.strategy.ready and not self.predict_only:
                raise RuntimeError(f"the strategy {self.config.continual.strategy!r} has what it needs of the learned tasks")
            if absent := [name for name in self.classes if name not in {data.name for data in classes}]:
                raise ValueError(f"what is learned is taken from all of it at once: the images of {', '.join(absent)} are missing")
            self.ledger[-1] |= self.strategy.after_task(self, classes, progress)
            self.predict_only = False

    def _latents(self, batches: TrainingBatches | MixedBatches, progress: bool) -> np.ndarray:
        """Latents of the batches' clean images, computed once a task: [n,h,w,C]."""
        size, n = 4 * self.autoencoder.batch_size, batches.n_images
        chunks = [(start, min(start + size, n)) for start in range(0, n, size)]
        images = ahead(lambda chunk: batches.clean(*chunk), chunks)
        bar = tqdm(images, "encode", len(chunks), disable=not progress, leave=False)
        return np.concatenate([self.autoencoder.encode(part) for part in bar])

    def _train(self, batches, latents, steps, index, progress, callback, checkpoint, checkpoint_seconds) -> None:
        saved = time.monotonic()
        bar = tqdm(
            total=steps,
            initial=self.progress["step"],
            desc=f"task {index + 1}: {', '.join(self.progress['classes'])}"[:48],
            unit="step",
            disable=not progress,
        )
        base_lr, t = self.config.training.lr, self.config.training
        lr = (t.lr if index == 0 else t.increment_lr) / base_lr
        context, all_reduce = self.drawing.contexts(len(self._part)), self.parallel and self.parallel.all_reduce
        with bar:
            for batch in batches.part(self._part).steps(self.progress["step"], steps):
                began, step = time.monotonic(), self.progress["step"]
                scale = lr * learning_rate_scale(step, steps, t.warmup, t.decay)
                try:
                    losses = self._trainer.step(
                        latents[batch.index], batch.image, batch.perturbed, context, lr_scale=scale, all_reduce=all_reduce
                    )
                finally:  # a signal's exception may come after the step is done
                    self.progress["step"] = self._trainer.n_steps - self._steps_before
                self.progress["seconds"] += time.monotonic() - began
                if callback is not None:
                    callback(StepReport(index, step, steps, *losses, scale))
                bar.update()
                bar.set_postfix(cdm=f"{losses[1]:.4f}", amn=f"{losses[2]:.4f}", refresh=False)
                if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                    self.save(checkpoint, keep_previous=True)
                    saved = time.monotonic()

    def denoising_error(self, images: ImageLike | Iterable[ImageLike]) -> float:
        """The mean squared error of images' latents as predicted at the sampler's first timestep, each under its own
        condition. Where that is noise alone and the prediction is v, it is L_CDM there. ``images``: of the host, as for `predict`.
        DataError: no images."""
        images = load_images(images, self.config.image_size)
        if not len(images):
            raise DataError("there are no images to denoise")
        latents = self.autoencoder.encode(images)
        return self.drawing.x0_error(latents, images)

    def _condition_ratio(self, sources: Sequence[Path | MemoryImage]) -> float:
        """`denoising_error` over that under another image's condition: 1 says that the model ignores its condition."""
        batch = max(2, self.config.scoring.batch_size)
        images = load_images(spread(sources, batch), self.config.image_size)
        order = np.arange(batch) % len(images)  # a batch is filled up
        latents = self.autoencoder.encode(images[order])
        own, other = (self.drawing.x0_error(latents, images[of % len(images)]) for of in (order, order + 1))
        return own / max(other, 1e-12)

    def representative_batches(self, classes: Sequence[ClassData]) -> TrainingBatches:
        """What represents these classes: ``continual.images`` of each one's images, evenly spread, in the light and with the
        perturbations of training, others than those that it drew. Bases of images as they are would leave to later tasks what the
        model has learned of others."""
        chosen = [replace(data, train=tuple(spread(data.train, self.config.continual.images))) for data in classes]
        return self._training_batches(chosen, self.config.scoring.batch_size, self.config.seed + 99_991)

    def _training_batches(self, classes: Sequence[ClassData], batch_size: int, seed: int) -> TrainingBatches:
        t = self.config.training
        return TrainingBatches(
            classes,
            image_size=self.config.image_size,
            batch_size=batch_size,
            seed=seed,
            perturb_share=t.perturb_share,
            light=t.light,
        )

    def collect_bases(
        self,
        classes: Sequence[ClassData],
        progress: bool = True,
        *,
        gamma: float | None = None,
        max_rank_share: float | None = None,
        max_added: int = 0,
    ) -> dict[str, tuple[np.ndarray, float, float]]:
        """The significant representation of these classes joined to the earlier tasks' (paper, Eq. 6): {weight:
        (U [d, rank], share of the energy kept, share lost to the caps)}, taken while the sampler reconstructs
        `representative_batches`. ``gamma``, ``max_rank_share``: instead of the configuration's; ``max_added``: directions by
        which a basis may grow (0: any number)."""
        c, batches = self.config.continual, self.representative_batches(classes)
        # Samplers of its own: what is predicted meanwhile is none of these classes' features.
        samplers = Programs(self.drawing.samplers.make, self.drawing.samplers.batch_size)
        collector = self._collector(samplers.whole, len(batches.sources), c.gamma if gamma is None else gamma)
        plan = collector.plan()
        log.info("representations:\n%s", describe_plan(plan))
        if c.memory and sum(size for *_, size in plan.values()) > c.memory << 20:
            log.warning("representations may take more than continual.memory = %d MiB", c.memory)

        for batch in tqdm(batches.epoch(0), "representations", len(batches), disable=not progress, leave=False):
            self.drawing.denoise(batch.perturbed, self.autoencoder.encode(batch.image), noise_seed=batch.step, samplers=samplers)
        return collector.bases(self.bases, c.max_rank_share if max_rank_share is None else max_rank_share, max_added)

    def _collector(self, sampler: _core.Sampler, images: int, gamma: float) -> _core.Collector:
        """Streams for the features of so many images, drawn by this sampler."""
        c = self.config.continual
        runs = -(-images // self.config.scoring.batch_size) * self.config.diffusion.evaluations
        return _core.Collector(sampler, c.method, gamma, runs, c.memory << 20, self._collected())

    def _collected(self) -> list[str]:
        return self.strategy.collected([name for name, shape in self.params.shapes().items() if len(shape) > 1])

    def recalibrate(self, classes: Task | ClassData | Iterable[ClassData]) -> None:
        """Measure the calibrations of these classes again, on their normal training images: what another sampler or
        backbone draws (`load` with a ``config``) differs from what the stored calibrations were measured on.
        A threshold that was measured by another calibration is dropped, with a warning. ``classes``: as in `consolidate`. ValueError:
        a class that was not learned; RuntimeError: the model is training, or ``scoring.calibrate`` is off."""
        with self._use.changing():
            classes = as_classes(classes, None)
            for data in classes:
                self.check_learned(data.name)
            if not self.config.scoring.calibrate:
                raise RuntimeError("scoring.calibrate is off: scores use no calibration, and those that are stored are kept")
            found = self._calibrate(classes)
            self._drop_thresholds(name for name, calibration in found.items() if not _same(calibration, self.calibrations.get(name)))
            self.calibrations |= found

    @property
    def uncalibrated(self) -> list[str]:
        """The classes whose calibration is of other scores than the configuration's, or was not measured: `recalibrate` does."""
        if not self.config.scoring.calibrate:
            return []
        return [name for name in self.calibrations if not self._fits(name, self.config.scoring)]

    def check_calibrated(self, classes: Iterable[str]) -> None:
        """RuntimeError, that says why, where one of these classes is `uncalibrated`."""
        scoring, stale = self.config.scoring, set(self.uncalibrated)
        for name in filter(stale.__contains__, classes):
            why, other = "without this calibration of its scores", ""
            if self._fits(name, scoring, checksum=False):
                why = "by other weights of the scores' backbone"
            elif self._fits(name, replace(scoring, memory_bank=0)):
                other = ", and scoring.memory_bank = 0 does without a memory bank"
            raise RuntimeError(f"class {name!r} was learned {why}: recalibrate() measures it{other}")

    def _fits(self, name: str, scoring: ScoringConfig, checksum: bool = True) -> bool:
        calibration, by = self.calibrations[name], self.features.checksum if checksum else None
        return calibration is not None and calibration.fits(self.config.image_size, self.features.widths, scoring, by)

    def _calibrate(self, classes: Sequence[ClassData]) -> dict[str, Calibration | None]:
        scoring = self.config.scoring
        if not scoring.calibrate:
            return dict.fromkeys(data.name for data in classes)

        def load(part: Sequence[Path | MemoryImage]) -> np.ndarray:
            return load_images(part, self.config.image_size)

        def read(data: ClassData) -> np.ndarray:
            return load(spread(data.train, scoring.calibration_images))

        found = {}
        for images, data in zip(ahead(read, classes), classes, strict=True):
            of_bank = spread(data.train, BANK_IMAGES)
            found[data.name] = self.drawing.calibration_of(images, ahead(load, chunked(of_bank, scoring.batch_size)), len(of_bank))
        return found

    # ---- prediction ---------------------------------------------------------------------------------------

    def predict(
        self,
        images: ImageLike | _core.DeviceArray | Iterable[ImageLike | _core.DeviceArray],
        class_name: str | None = None,
        *,
        progress: bool = False,
    ) -> Prediction:
        """Scores, anomaly maps and reconstructions.

        ``images``: paths, PIL images and arrays [H,W,3] (RGB, uint8, uint16, or float in [0,1]; of grey [H,W] or [H,W,1]) of any sizes,
        in any collection, or one of them, or an array [N,H,W,3]. An array or PIL image gives what a file of the same pixels gives, bit for
        bit: it is turned as its EXIF orientation says, and resized to the model's image size, which ``maps`` have. They are read
        chunk after chunk, an iterator's too. An array that lies on the model's device (float32: a `DeviceArray`, a torch, CuPy or
        JAX array) is read there, and has the model's size. TypeError: something else; ValueError: an array of another shape, or on
        a device of another size; ImageError: an image that cannot be read, LimitError: a larger one than is read.
        ``class_name``: the product, if known: its calibration is used, else the mean of all classes' and the nearest of their memory
        banks; ValueError where it was not learned. RuntimeError: nothing was learned yet, the model is training, or a class is
        `uncalibrated`. A sample's result depends on (image, class_name, model, seed) alone, not on what it is predicted with;
        by another instruction set, or on a GPU, within rounding.
        """
        with self._use.reading():
            found = self._predict(images, class_name, progress)
        return replace(found, threshold=self._threshold(class_name))

    def _predict(self, images, class_name: str | None, progress: bool) -> Prediction:
        parts, size = list(self._predicted(images, class_name, progress)), self.config.image_size
        if not parts:
            empty = np.zeros((0, size, size), np.float32)
            return Prediction(np.zeros(0, np.float32), empty, np.zeros((0, size, size, 3), np.float32))
        maps, reconstructions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Prediction(image_scores(maps, self.config.scoring), maps, reconstructions)

    def _predicted(self, images, class_name: str | None, progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Maps and reconstructions, chunk after chunk."""
        if not self.ledger:
            raise RuntimeError("the model has learned no task yet")
        if class_name is not None:
            self.check_learned(class_name)
        on_gpu = self.params.device.startswith("cuda")
        # On a GPU everything goes on there; other devices give the CPU's bits, whose way is by the host. Its memory is short.
        size, chunk = self.config.image_size, (1 if on_gpu else 4) * self.config.scoring.batch_size
        there = _core.as_device_array(images)
        if there is None:
            sources = as_images(images, device_size=size)
            parts = chunked(sources, chunk)
        else:
            sources = there.reshape((1, *there.shape)) if len(there.shape) == 3 else there
            if sources.shape[1:] != (size, size, 3):
                raise ValueError(
                    f"images on {there.device} have the shape {list(there.shape)}; [N,{size},{size},3] is wanted, as images of other "
                    "sizes are resized on the host"
                )
            parts = (sources[start : start + chunk] for start in range(0, len(sources), chunk))
        total = -(-len(sources) // chunk) if isinstance(sources, Sized) else None
        calibration = self._calibration(class_name)

        def read(part: list | _core.DeviceArray) -> np.ndarray | _core.DeviceArray:
            array = load_images(part, size) if isinstance(part, list) else part
            return _core.DeviceArray(array, self.params.device) if on_gpu and isinstance(array, np.ndarray) else array

        for array in tqdm(ahead(read, parts), "predict", total, disable=not progress, leave=False):
            reference, drawn = self.drawing.draw(array)
            distances = self.drawing.distances(reference, drawn, calibration.whitening if calibration else ())
            maps = score_maps(distances, calibration, self.config.scoring, size, self.drawing.nearest(array, calibration))
            yield maps, np.asarray(drawn[0])

    def set_threshold(self, class_name: str, images: Any, *, quantile: float = 1.0, progress: bool = False) -> float:
        """Measure above which score an image of this class counts as anomalous: `Prediction.anomalous`. A model's files keep it.

        ``images``: normal ones, as for `predict`, that the class was not trained on: trained ones score lower than new ones.
        ``quantile``: of their scores, in (0, 1]; 1: the highest, above which lies about one new normal image in n + 1.
        Tasks that are learned later move scores a little, and `predict` warns then: measure again. Errors as in `predict`; ValueError:
        no images, another quantile, or a score that is no number."""
        self.check_learned(class_name)
        check_quantile(quantile)
        with self._use.reading():
            scores = [image_scores(maps, self.config.scoring) for maps, _ in self._predicted(images, class_name, progress)]
        threshold = Threshold.of(np.concatenate(scores or [np.zeros(0, np.float32)]), quantile, len(self.ledger))
        self.thresholds = self.thresholds | {class_name: threshold}
        return threshold.value

    def _threshold(self, class_name: str | None) -> float | None:
        threshold = None if class_name is None else self.thresholds.get(class_name)
        stale = (class_name, threshold and threshold.tasks, len(self.ledger))
        if threshold is not None and threshold.tasks != len(self.ledger) and stale != self._stale_threshold:
            self._stale_threshold = stale  # told once, not with every chunk of images
            log.warning("the threshold of %s was measured after %d of %d tasks: set_threshold() measures it again", class_name,
                        threshold.tasks, len(self.ledger))  # fmt: skip
        return threshold and threshold.value

    def _drop_thresholds(self, names: Iterable[str]) -> None:
        """Those of classes whose scores are others from now on."""
        if gone := [name for name in names if name in self.thresholds]:
            log.warning("the thresholds of %s were of other scores, and are dropped: set_threshold() measures them again", ", ".join(gone))
            self.thresholds = {name: threshold for name, threshold in self.thresholds.items() if name not in gone}

    def check_learned(self, class_name: str) -> None:
        """ValueError, naming the classes that are: this one was not learned."""
        if class_name not in self.classes:
            raise ValueError(f"class {class_name!r} was not learned; known: {', '.join(self.classes)}")

    def _calibration(self, class_name: str | None) -> Calibration | None:
        if not self.config.scoring.calibrate:
            return None
        chosen = self.calibrations if class_name is None else {class_name: self.calibrations[class_name]}
        self.check_calibrated(chosen)
        if class_name is not None:
            return self.calibrations[class_name]
        own, pooled = tuple(chosen.values()), self._pooled
        if pooled is None or list(map(id, pooled[0])) != list(map(id, own)):
            pooled = self._pooled = own, Calibration.pool(own)
        return pooled[1]  # the same from one call to the next: it keeps its whitening

    # ---- files --------------------------------------------------------------------------------------------

    def __reduce__(self):
        """Copies and pickles are of what `save` writes: a copy learns on apart from this model. TypeError: trained by several
        processes, which meet in what cannot be copied."""
        if self.parallel is not None:
            raise TypeError("a model that several processes train is not copied: save() it, and load() the file")
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            self.save(path)
            return _unpickled, (path.read_bytes(), self.params.device)

    def save(self, path: str | os.PathLike, *, keep_previous: bool = False) -> None:
        """Write everything in one atomic file: weights, what the strategy keeps, ledger, and within a task the optimiser's
        moments and the place in it. ``keep_previous``: the file that it replaces is kept beside it (`previous_of`).
        OSError: nothing was changed; RuntimeError: another thread trains the model."""
        self._use.check_saving()
        _check_writable(path)
        save_model(self, path, keep_previous=keep_previous)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config: Config | None = None,
        *,
        device: str | None = None,
        parallel: DataParallel | None = None,
        predict_only: bool = False,
    ) -> ContinualModel:
        """Read what `save` wrote. ``config`` replaces the stored one where it does not change the networks (e.g.
        another strategy, see `consolidate`, or training schedule); where it changes the sampler or the scores, `recalibrate` follows,
        and thresholds are dropped, with a warning.
        ``predict_only``: without what predictions do not need, as bases, which may be larger than the weights, moments and the place
        in a task. Such a model takes less memory, saves smaller files, from which it is loaded so again, and learns no further unless
        `consolidate` gives it what its strategy needs.
        CheckpointError: damaged, or of another model."""
        with Checkpoint(path) as checkpoint:
            # Checksums tell damage, not intent: what the file says is looked at like any other's.
            if config is not None:
                model = cls(config, device=device, parallel=parallel, _load_weights=False)
            else:
                _core.Params(device)  # one that is not there is not the file's fault
                try:
                    config = Config.from_dict(checkpoint.state["config"], whole=True)
                    model = cls(config, device=device, parallel=parallel, _load_weights=False)
                except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                    raise CheckpointError(f"its configuration makes no model: {error}", path) from error
            restore(model, checkpoint, predict_only=predict_only)
        return model


def _unpickled(content: bytes, device: str) -> ContinualModel:
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(content)
        return ContinualModel.load(path, device=device)


def _same(a: Calibration | None, b: Calibration | None) -> bool:
    if a is None or b is None:
        return a is b
    x, y = ({key: part for key, part in c.tensors().items() if key not in ("backbone", "chosen")} for c in (a, b))  # older files do not tell them
    return x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)


def _check_writable(path: str | os.PathLike) -> None:
    """OSError for what cannot be a checkpoint, before anything is trained for it."""
    check_path(path, "a checkpoint")
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "a checkpoint is a file, and this is a folder", os.fspath(path))
    folder = os.path.dirname(os.fspath(path)) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no folder for the checkpoint", os.fspath(path))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the checkpoint's folder cannot be written", os.fspath(path))


def learning_rate_scale(step: int, steps: int, warmup: int, decay: float) -> float:
    """Linear warm-up over ``warmup`` steps, then 1, then a cosine to zero over the last ``decay`` share of steps."""
    scale = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    tail = decay * steps
    if tail > 0 and step >= steps - tail:
        scale *= 0.5 * (1.0 + np.cos(np.pi * (step - (steps - tail)) / tail))
    return float(scale)


def describe_plan(plan: dict[str, tuple[int, str, int, int]]) -> str:
    """`_core.Collector.plan` as a table: one line a kind of stream, widest first, with the memory that it may take."""
    kinds: dict[tuple[int, str, int], list[int]] = {}
    for d, method, rank, size in plan.values():
        kinds.setdefault((d, method, rank), []).append(size)
    rows = [
        {"width": d, "method": method, "rank at most": rank, "weights": len(sizes), "MiB": sum(sizes) / 2**20}
        for (d, method, rank), sizes in sorted(kinds.items(), reverse=True)
    ]
    return format_table(rows, digits=1, title=f"{sum(row['MiB'] for row in rows):.1f} MiB at most")


__all__ = ["ContinualModel", "StepReport"]
