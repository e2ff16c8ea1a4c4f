"""What of a model a checkpoint keeps, and how a model is made of it again."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from .checkpoint import Checkpoint, save_checkpoint
from .data.records import check_name
from .errors import CheckpointError, DataError, FormatError
from .scoring import Calibration
from .strategies.projection import STAYS
from .thresholds import Threshold
from .weights import fill
from .weights.loading import Piece
from .weights.tensor_file import DTYPES

if TYPE_CHECKING:
    from .config import Config
    from .model import ContinualModel

log = logging.getLogger("cdad")

# On what no score of an image depends, as it is of training alone, or comes with the checkpoint; calibrations know a backbone's weights
# by their checksum, wherever they lie.
_NO_SCORES = ("preset", "autoencoder", "text", "training", "continual")
_NO_SCORES_WITHIN = ("batch_size", "calibration_images", "weights", "ema", "target", "keep_variance")

# What the names of a model's own tensors begin with; all others are its strategy's.
_OWN = ("model/", "autoencoder/", "latent/", "context", "calibration/", "optimizer/")


def save_model(model: ContinualModel, path: str | os.PathLike, *, keep_previous: bool) -> None:
    """Write a model; arrays of a device come to the host one at a time. Moments are written while a task's steps run: the next
    task begins without."""
    tensors: dict[str, Any] = {}
    for scope, params in (("model/", model.params), ("autoencoder/", model.autoencoder.params)):
        tensors |= {scope + name: lambda params=params, name=name: params[name] for name in params.shapes()}
    tensors |= {"latent/shift": model.autoencoder.shift, "latent/scale": model.autoencoder.scale}
    if model.drawing.context is not None:
        tensors["context"] = model.drawing.context
    tensors |= model.strategy.tensors()
    for name, calibration in model.calibrations.items():
        if calibration is not None:
            tensors |= {f"calibration/{name}/{key}": value for key, value in calibration.tensors().items()}
    blocks = (["m", "v"] if model._trainer.age else []) + (["ema"] if model.config.training.ema_decay > 0 else [])
    tensors |= {f"optimizer/{block}": lambda block=block: model._trainer.block(block) for block in blocks}
    progress = model.progress  # whose step a signal's handler finds one behind, just after a step
    if progress:
        progress = progress | {"step": model._trainer.n_steps - model._steps_before}
    state = {
        "config": model.config.to_dict(),
        "ledger": model.ledger,
        "progress": progress,
        "predict_only": model.predict_only,
        "thresholds": {name: threshold.to_dict() for name, threshold in model.thresholds.items()},
        "strategy": {"name": model.config.continual.strategy} | model.strategy.state(),
        "steps": model._trainer.n_steps,
        "age": model._trainer.age,
    }
    save_checkpoint(path, tensors, state, keep_previous=keep_previous)


def restore(model: ContinualModel, checkpoint: Checkpoint, *, predict_only: bool = False) -> None:
    """Set a new model to what a checkpoint keeps, a tensor at a time. Every tensor of the file is checked, also those that this
    model does not use. CheckpointError: damaged, or of another model."""
    try:
        _restore(model, checkpoint, predict_only)
        checkpoint.check_unread()
    except CheckpointError:
        raise
    except FormatError as error:
        raise CheckpointError(f"the checkpoint is of another model: {error.reason}", checkpoint.path) from error
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"what it holds does not fit together: {type(error).__name__}: {error}"
        raise CheckpointError(reason, checkpoint.path) from error


def _restore(model: ContinualModel, checkpoint: Checkpoint, predict_only: bool) -> None:
    state, path = checkpoint.state, checkpoint.path

    def section(scope: str) -> dict[str, Piece]:
        return {
            name.removeprefix(scope): Piece(info.shape, lambda name=name: checkpoint.read(name))
            for name, info in checkpoint.tensors.items()
            if name.startswith(scope)
        }

    fill(model.params, section("model/"), what="model")
    model.autoencoder.set_weights(section("autoencoder/"))
    for part in ("shift", "scale"):
        found, wanted = checkpoint.read(f"latent/{part}"), getattr(model.autoencoder, part).shape
        if found.shape != wanted:
            raise CheckpointError(f"latent/{part} is {list(found.shape)}, expected {list(wanted)}", path)
        setattr(model.autoencoder, part, found)
    if model.drawing.context is not None:
        if "context" not in checkpoint.tensors or checkpoint.tensors["context"].shape != model.drawing.context.shape:
            raise CheckpointError(f"the checkpoint has no context of {list(model.drawing.context.shape)}", path)
        model.drawing.context = checkpoint.read("context")
    kept = state.get("strategy", {"name": "cdad"})
    goes_on = kept["name"] == model.config.continual.strategy
    model.predict_only = predict_only = predict_only or state.get("predict_only", False) is True
    if goes_on and not predict_only:
        its = [name for name in checkpoint.tensors if not name.startswith(_OWN)]
        model.strategy.restore({name: checkpoint.read(name) for name in its}, kept)
    model.ledger, model.progress = state["ledger"], state["progress"]
    step = model.progress.get("step", 0)
    if type(step) is not int or step < 0:
        raise CheckpointError(f"its progress is at the step {step!r}", path)
    names = [*model.classes, *model.progress.get("classes", [])]
    try:
        named_twice = len({check_name(name) for name in names}) < len(names)
    except DataError as error:
        raise CheckpointError(f"of its ledger, {error}", path) from None
    if named_twice:
        raise CheckpointError("classes of its ledger are named twice", path)
    if predict_only:
        if step and model.ledger:
            log.warning("%s is at step %d of a task that has begun: its weights are no longer what the tasks before left, which the run's "
                        "tasks/%d.safetensors holds", path, step, len(model.ledger) - 1)  # fmt: skip
        model.progress = {}
    for name in model.classes:
        parts = {key: piece.read() for key, piece in section(f"calibration/{name}/").items()}
        model.calibrations[name] = Calibration.from_tensors(parts) if parts else None
    model.thresholds = {name: Threshold.from_dict(of) for name, of in state.get("thresholds", {}).items() if name in model.classes}
    if model.thresholds and not _scores_alike(state["config"], model.config):
        model._drop_thresholds(list(model.thresholds))
    # What a later task moves is its strategy's: under another one its moments begin anew.
    _restore_optimizer(model, checkpoint, bool(model.progress) and (goes_on or not model.ledger))
    model._steps_before = model._trainer.n_steps - step


def _scores_alike(stored: dict[str, Any], config: Config) -> bool:
    """Whether nothing that a score depends on is another one than in a file's configuration."""
    now = config.to_dict()
    for name in stored.keys() & now.keys() - set(_NO_SCORES):
        here, there = now[name], stored[name]
        if isinstance(there, dict):  # keys that are newer than the file are not held against it
            names = there.keys() & here.keys() - set(_NO_SCORES_WITHIN)
            if name == "scoring" and not here["calibrate"]:
                names |= {"weights"} & there.keys()
            here, there = ({key: bool(of[key]) if key == "memory_bank" else of[key] for key in names} for of in (here, there))
        if here != there:
            return False
    return now["training"]["ema_decay"] > 0 or not stored.get("training", {}).get("ema_decay", 0) > 0  # another's weights would draw


def _restore_optimizer(model: ContinualModel, checkpoint: Checkpoint, moments: bool) -> None:
    trainer, averaged = model._trainer, model.config.training.ema_decay > 0
    names = {name.removeprefix("optimizer/"): name for name in checkpoint.tensors if name.startswith("optimizer/")}
    trainer.n_steps, trainer.age = checkpoint.state["steps"], checkpoint.state["age"]
    if unknown := names.keys() - {"m", "v", "ema"}:
        raise CheckpointError(f"there is no block {min(unknown)!r} of an optimizer", checkpoint.path)
    if not moments:  # as of a file between tasks by version 1, which has some
        trainer.age = 0
    if trainer.age and not {"m", "v"} <= names.keys():
        raise CheckpointError("it has no optimizer/m or optimizer/v", checkpoint.path)
    if trainer.age:
        if model.ledger and not model.strategy.ready:
            raise CheckpointError(f"it lacks bases that this configuration wants: {STAYS}", checkpoint.path)
        model.strategy.restrict(model, len(model.ledger))
    for block, name in names.items():
        if not (averaged if block == "ema" else trainer.age):
            continue
        kept, found = trainer.block(block), checkpoint.tensors[name]
        if kept.flags.writeable and DTYPES[found.dtype] == kept.dtype.str and found.shape == kept.shape:
            checkpoint.check(name, kept)  # straight into the block, which may be a third of the checkpoint
            continue
        values = checkpoint.read(name)
        try:
            trainer.set_block(block, values)  # which turns moments that were kept in another way
        except ValueError as error:
            reason = f"{name} is {list(found.shape)}: {error}; {STAYS}"
            raise CheckpointError(reason, checkpoint.path) from error
    if averaged and "ema" not in names:  # it was trained without: the average begins with the weights
        trainer.set_block("ema", trainer.block("weights"))
