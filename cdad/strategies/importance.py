"""Strategies that pull each weight to where it was, the more the more it mattered: EWC, MAS, SI.

All three end a task with an importance of every weight and an anchor, the weights as they are then; later tasks add
a quadratic penalty to the loss. They differ in what an importance is. Blocks are float32 in the layout of the
model's parameters (`Trainer.block`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from .. import _core
from ..data.records import ClassData
from ..errors import CheckpointError
from .base import Strategy

if TYPE_CHECKING:
    from ..model import ContinualModel


class QuadraticPenalty(Strategy):
    """``strength * pull / 2 * sum(importance * (weights - anchor)**2)``, one anchor, the newest; importances of later
    tasks are added to ``importance_decay`` times what there is."""

    #: The paper's penalty in units of half of the weighted square.
    pull = 1.0
    kept_blocks = 2

    def __init__(self, config):
        super().__init__(config)
        self.importance: np.ndarray | None = None
        self.anchor: np.ndarray | None = None

    @property
    def ready(self) -> bool:
        return self.importance is not None

    def before_task(self, model, classes, index, step, progress):
        if index > 0:
            model._trainer.penalize(self.importance, self.anchor, self.pull * self.config.strength)

    def after_task(self, model, classes, progress):
        report, importance = self.joined(model, classes, progress)
        self.importance, self.anchor = importance, model._trainer.block("weights").copy()
        return report

    def joined(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> tuple[dict[str, float], np.ndarray]:
        """What is told of the task that has just been learned, and the importances with its own."""
        new = self.measure(model, classes, progress)
        report = {"importance_mean": float(np.mean(new, dtype=np.float64)), "importance_max": float(np.max(new))}
        if self.importance is not None:
            weights = model._trainer.block("weights")
            report["penalty"] = penalty(weights, self.importance, self.anchor, self.pull * self.config.strength)
            new += np.float32(self.config.importance_decay) * self.importance
        return report, new

    def measure(self, model: ContinualModel, classes: Sequence[ClassData], progress: bool) -> np.ndarray:
        """The importances of the task that has just been learned."""
        raise NotImplementedError

    def tensors(self):
        blocks = {"importance": self.importance, "anchor": self.anchor}
        return {f"strategy/{name}": block for name, block in blocks.items() if block is not None}

    def restore(self, tensors, state):
        self.importance, self.anchor = tensors.get("strategy/importance"), tensors.get("strategy/anchor")


class EWC(QuadraticPenalty):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, Eq. 3): importances are the diagonal of the empirical
    Fisher information, the mean over samples of the squared gradient of the training loss, each sample with a timestep
    and a noise of its own. Tasks are joined as in online EWC (Schwarz et al., ICML 2018): one anchor, a decayed sum;
    decay 1, the default, is the plain sum."""

    def measure(self, model, classes, progress):
        return mean_magnitudes(model, classes, "loss", squares=True, progress=progress)


class MAS(QuadraticPenalty):
    """Memory aware synapses (Aljundi et al., ECCV 2018, Eqs. 2 to 4): importances are the mean over samples of the
    absolute gradient of the squared norm of the output, here the denoiser's prediction."""

    pull = 2.0  # the paper's penalty has no 1/2

    def measure(self, model, classes, progress):
        return mean_magnitudes(model, classes, "output", squares=False, progress=progress)


class SI(QuadraticPenalty):
    """Synaptic intelligence (Zenke et al., ICML 2017, Eqs. 3 to 5): importances are the path integral of gradient times
    change over the task, over the squared change of the whole task plus ``si_damping``. Those below zero, where a weight
    moved against its gradient, are set to zero as in the authors' code: a penalty on them would push the weight away."""

    pull = 2.0  # the paper's surrogate loss has no 1/2
    kept_blocks = 3

    def __init__(self, config):
        super().__init__(config)
        self._trainer: _core.Trainer | None = None  # that adds up the path of the task that runs, where the weights lie
        self._read: np.ndarray | None = None  # the path of a file, until its task goes on

    @property
    def path(self) -> np.ndarray | None:
        """The path integral of the task that runs, so far; from a device, a copy."""
        return self._read if self._trainer is None else self._trainer.block("path")

    def before_task(self, model, classes, index, step, progress):
        trainer = model._trainer
        if step == 0:
            if index == 0:
                self.anchor = trainer.block("weights").copy()
        elif self._trainer is None and self._read is None:
            raise CheckpointError("si follows the weights through a whole task: it cannot begin in the middle of one")
        super().before_task(model, classes, index, step, progress)
        if step == 0 or self._trainer is None:
            trainer.follow(True)
            if step > 0:
                trainer.set_block("path", self._read)
            self._trainer, self._read = trainer, None

    def after_task(self, model, classes, progress):
        report, importance = self.joined(model, classes, progress)
        anchor = model._trainer.block("weights").copy()
        self._read, self._trainer = np.array(self.path), None  # an interruption leaves what the task's end can be made of again
        model._trainer.follow(False)
        self.importance, self.anchor, self._read = importance, anchor, None
        return report

    def measure(self, model, classes, progress):
        path = self.path
        if path is None:
            raise CheckpointError("si follows the weights while they learn: it cannot go on from another strategy's task")
        return path_importance(path, model._trainer.block("weights") - self.anchor, self.config.si_damping)

    def tensors(self):
        path = self.path
        return super().tensors() | ({} if path is None else {"strategy/path": path})

    def restore(self, tensors, state):
        super().restore(tensors, state)
        self._read = tensors.get("strategy/path")


def path_importance(path: np.ndarray, change: np.ndarray, damping: float) -> np.ndarray:
    """Zenke et al. 2017, Eq. 5: path / (change^2 + damping), at least 0."""
    return np.maximum(path / (change * change + np.float32(damping)), np.float32(0))


def penalty(weights: np.ndarray, importance: np.ndarray, anchor: np.ndarray, strength: float) -> float:
    """strength/2 * sum(importance * (weights - anchor)^2), in parts so that no block is held a second time."""
    total, part = 0.0, 1 << 20
    for i in range(0, len(weights), part):
        change = weights[i : i + part].astype(np.float64) - anchor[i : i + part]
        total += float(np.sum(importance[i : i + part] * change * change))
    return 0.5 * strength * total


def mean_magnitudes(
    model: ContinualModel, classes: Sequence[ClassData], objective: str, *, squares: bool, progress: bool = False
) -> np.ndarray:
    """The mean over samples of the absolute gradient of ``objective`` (of `_core.Trainer`) or of its square: a block.

    Samples are `ContinualModel.representative_batches`, each alone, with one timestep and noise that depend on the seed and
    the sample's number only.
    """
    c = model.config
    seed = c.seed + 104_729 * (len(model.ledger) + bool(model.progress.get("step")))  # tasks learned, with the one that ends
    batches = model.representative_batches(classes).resized(1)
    trainer = _core.Trainer(
        model.params, c.denoiser(), 1, None, c.seed, objective=objective, recompute=c.training.recompute
    )
    for i, batch in enumerate(tqdm(batches.epoch(0), "importances", len(batches), disable=not progress, leave=False)):
        latent = model.autoencoder.encode(batch.image)
        noise, timesteps = draw(c, latent.shape, seed, i)
        trainer.magnitudes(latent, batch.image, batch.perturbed, noise, timesteps, model.drawing.contexts(1), squares=squares)
    return trainer.block("sums") / np.float32(len(batches))


def draw(config, shape: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and timesteps [N] of latents of ``shape`` [N,h,w,c], with the training's distribution of timesteps."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(number, 1))))
    low = np.where(rng.random(shape[0]) < config.training.timestep_focus, config.lowest_sampled_timestep, 0)
    timesteps = rng.integers(low, config.diffusion.num_train_timesteps)
    return _core.random_normal(shape, seed, number), timesteps
