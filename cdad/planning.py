"""What a run would take: memory by purpose, the size of a checkpoint, operations and an estimate of time, without running it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from .config import Config, preset
from .data.loader import CACHE_BYTES, PREFETCH, versions
from .memory_bank import BANK_IMAGES, PLACES_AT_ONCE, MemoryBank
from .model import ContinualModel
from .profile import profile_prediction, profile_training
from .scoring import chosen_layers
from .strategies import CDAD

# Of the width: the directions that a new task gets beside the bases. Real products take 16 to 19 % (benchmarks/RESULTS.md).
OWN_SHARE = 0.18


@dataclass(frozen=True)
class Layer:
    """A weight: ``bytes`` of its values; ``method`` and ``stream_bytes`` of what accumulates its input features of ``width``
    (0 bytes: it shares another weight's), None where the strategy collects none."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    width: int
    method: str | None
    stream_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """``memory``: {phase: {part: bytes}}; a phase's sum is what the process takes then:

    =============== ======================================================================================
    ``training``    steps of the first task
    ``calibrating`` the scores after a task, and testing within a run
    ``collecting``  significant representations after a task, of strategies that keep some
    ``increment``   steps of the second task: bases and the task's own directions too
    ``prediction``  of images by a model that was loaded with ``predict_only``
    =============== ======================================================================================

    Parts: ``weights`` and their moving ``average``; ``gradients``, where all are held at once; ``moments`` of what a task moves;
    ``workspace``, in which the networks run one at a time; ``update``, in which projections work; ``condition`` of a batch that is drawn; ``autoencoder`` and
    ``backbone``, their weights; ``data``, decoded images and latents;
    ``batches`` that are made ahead; ``images`` on their way to be encoded or scored; ``streams`` of features; ``bases``,
    in ``collecting`` what they take beyond the streams whose place they take; ``directions``; ``solving``, what bases are computed in; ``kept``, other blocks that a strategy keeps.

    ``workspace``: bytes that each network takes of it (`ContinualModel.workspace_needs`); of a ``step`` nearly all are activations.
    ``checkpoint``: bytes of the file after a task; one within a task has the moments too. ``flops``: of the products of a training ``step``, of one of the second task (``increment``), projections included but not a
    teacher's, and of an ``image`` that is drawn and scored. ``layers``: the largest weights. ``seconds``: estimates for a ``step``, a first ``task``'s steps
    and an ``image``, or None. ``assumed``: what the plan supposes."""

    preset: str
    batch_size: int
    scoring_batch_size: int
    threads: int
    assumed: dict[str, float]
    memory: dict[str, dict[str, int]]
    workspace: dict[str, int]
    checkpoint: int
    flops: dict[str, float]
    layers: tuple[Layer, ...]
    seconds: dict[str, float] | None

    @property
    def peak(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {phase: sum(parts.values()) for phase, parts in self.memory.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return dataclasses.asdict(self) | {"peak": self.peak}


def plan(
    config: Config | str = "small",
    *,
    images: int = 300,
    classes: int = 1,
    rank_share: float = 0.5,
    layers: int = 10,
    time: bool = False,
) -> Plan:
    """What a run of the configuration, or of the preset of that name, would take on the CPU, without any weights or arenas.

    The sizes are those that the core's own objects tell (`ContinualModel.memory_bytes`), made on a device without memory.
    Beside them a process holds Python and its libraries, some 80 MiB.
    ``images``: training images of a task, of so many ``classes``. ``rank_share``: of their width that bases of one task are
    supposed to take, unless a sketch or ``continual.max_rank_share`` allows less: ranks are known only after a task.
    ``layers``: how many of the largest weights are listed. ``time``: measure a part of the network on this machine for some
    seconds, and estimate. ValueError: an argument out of its range.
    """
    if isinstance(config, str):
        config = preset(config)
    for name, value in (("images", images), ("classes", classes)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is wanted")
    images, classes, rank_share = int(images), int(classes), float(rank_share)  # NumPy's are no JSON
    if not 0 < rank_share <= 1:
        raise ValueError(f"rank_share is {rank_share}; 0 < share <= 1 is wanted")
    rank_share = min(rank_share, config.continual.max_rank_share)
    model = ContinualModel(config, device="planned", _load_weights=False)
    for programs in (*model.autoencoder.programs, model.drawing.samplers, model.features.programs):
        programs.single  # noqa: B018 - compiled now, as a run that is not of whole batches alone does
    parts, needs, shapes = model.memory_bytes, model.workspace_needs, model.params.shapes()
    flops = {"step": model._trainer.flops}
    streams = _streams(model, images, classes)
    bases, directions = _subspaces(model, streams, rank_share)
    held = {"weights": parts["parameters"], "average": parts["average"], "autoencoder": parts["autoencoder"]}
    scoring = {"workspace": max(needs.values()), "condition": parts["condition"], "backbone": parts["backbone"]}
    predicting = scoring | {"workspace": max(size for name, size in needs.items() if name != "step")}
    after = held | {"data": _data(config, images)}
    again = {"joint": images, "replay": classes * config.continual.replay_images}.get(config.continual.strategy, 0)  # of the first task
    later = {"data": _data(config, images + again)}
    training = after | {"workspace": max(needs["step"], needs["encode"])}
    training |= {"batches": _batches(config), "images": _encoded_arrays(config), "backbone": parts["backbone"]}
    flops |= {"increment": model._trainer.flops, "image": _image_flops(model)}
    first, second = ({part: told[part] for part in ("moments", "update", "gradients")} for told in (parts, model.memory_bytes))
    second["workspace"] = max(scoring["workspace"], model.workspace_needs["step"])
    kept = {"bases": bases, "directions": directions, "kept": model.strategy.kept_blocks * parts["parameters"]}
    of_class = -(-images // classes)
    n, places, width = _bank(model, of_class)
    drawn = _prediction_arrays(model, max(4 * config.scoring.batch_size, min(of_class, config.scoring.calibration_images)))
    made = _making(model, of_class, places, width) if n else 0
    scored = {"images": _prediction_arrays(model, 4 * config.scoring.batch_size), "bank": 4 * n * (classes * width + 2 * PLACES_AT_ONCE)}
    memory = {
        "training": training | first,
        "calibrating": after | scoring | {"images": drawn, "bank": max(made - drawn, 0)},  # made when what was drawn is gone
        "collecting": after | scoring | {"streams": sum(size for *_, size in streams.values())},
        "increment": training | scoring | second | kept | later,
        "prediction": held | predicting | scored,
    }
    if streams:
        beyond = max(_held(streams, rank_share), bases) - memory["collecting"]["streams"]
        memory["collecting"] |= {"bases": max(beyond, 0), "solving": _solving(streams)}
    else:
        del memory["collecting"]
    return Plan(
        preset=config.preset,
        batch_size=config.training.batch_size,
        scoring_batch_size=config.scoring.batch_size,
        threads=_core.get_threads(),
        assumed={"images": images, "classes": classes, "rank_share": rank_share},
        memory={phase: {name: size for name, size in of.items() if size} for phase, of in memory.items()},
        workspace=needs,
        checkpoint=_checkpoint(model, shapes, bases, classes, n * width),
        flops=flops,
        layers=_largest(shapes, streams, layers),
        seconds=_seconds(config, flops, parts, config.training.task_steps(0, classes, images)) if time else None,
    )


def _streams(model: ContinualModel, images: int, classes: int) -> dict[str, tuple[int, str, int, int]]:
    """`_core.Collector.plan` of a task; {} where the strategy keeps no bases."""
    if not isinstance(model.strategy, CDAD):
        return {}
    c = model.config.continual
    return model._collector(model.drawing.samplers.whole, classes * min(c.images, -(-images // classes)), c.gamma).plan()


def _ranks(streams: dict[str, tuple[int, str, int, int]], rank_share: float) -> dict[str, int]:
    return {name: max(1, min(int(rank_share * d), most)) for name, (d, _, most, _) in streams.items()}


def _held(streams: dict[str, tuple[int, str, int, int]], rank_share: float) -> int:
    """Bytes that streams and bases take together at most: streams are freed as bases are made of them, widest first, side by
    side."""
    ranks, threads = _ranks(streams, rank_share), _core.get_threads()
    held = most = sum(size for *_, size in streams.values())
    solving: list[int] = []
    for name, (d, _, _, size) in sorted(streams.items(), key=lambda item: -item[1][0]):
        held += 4 * d * ranks[name]
        most = max(most, held)
        if size:
            solving.append(size)
        if len(solving) >= threads:
            held -= solving.pop(0)
    return most


def _subspaces(model: ContinualModel, streams: dict[str, tuple[int, str, int, int]], rank_share: float) -> tuple[int, int]:
    """Bytes of the bases and of the directions in which a later task moves weights, in which the trainer moves them then."""
    if not streams:
        return 0, 0
    c, whole = model.config.continual, CDAD.moves_everywhere(model.config)
    ranks = _ranks(streams, rank_share)
    # On the planned device nobody reads directions: all weights' are the same untouched memory.
    widest = max(d for d, *_ in streams.values())
    memory = np.empty(widest * widest, np.float32)
    bases = directions = 0
    for name in model.params.shapes().keys() - streams.keys():
        model._trainer.protect(name, frozen=True)
    for name, (d, _, most, _) in streams.items():
        k = ranks[name]
        own = min(max(1, int(OWN_SHARE * d)), c.max_directions or d, most, d - k)
        if whole:
            own = d - k if c.projection == "update" else min(k, d - k)
        if own:
            model._trainer.confine(name, memory[: d * own].reshape(own, d))
        else:
            model._trainer.protect(name, frozen=True)
        bases += 4 * d * k
        if c.projection == "update" or own < k:  # else gradients go off the basis itself
            directions += 4 * d * own
    return bases if c.basis_dtype == "float32" else bases + bases // 2, directions


def _image_bytes(config: Config) -> int:
    """Of an image as float32 [H,W,3]."""
    return 12 * config.image_size**2


def _data(config: Config, images: int) -> int:
    """What a task keeps of its images: 8-bit pixels as far as the cache goes, and latents."""
    pixels = _image_bytes(config) // 4
    latents = images * versions(config.training.light) * _latent_bytes(config)
    return min(images, CACHE_BYTES // pixels) * pixels + latents


def _latent_bytes(config: Config) -> int:
    return 4 * config.latent_size**2 * config.autoencoder.latent_channels


def _batches(config: Config) -> int:
    """Clean and perturbed images of the batches made ahead, and of the one in use."""
    return (PREFETCH + 1) * config.training.batch_size * (2 * _image_bytes(config) + _latent_bytes(config))


def _encoded_arrays(config: Config) -> int:
    """Of the images that are encoded before a task's steps, four batches at a time, this and the next; malloc keeps it."""
    return 2 * 4 * config.scoring.batch_size * _image_bytes(config)


def _prediction_arrays(model: ContinualModel, n: int) -> int:
    """Of so many images that are drawn at once: these and the next ones, x^ and x- of every noise, both as the backbone takes them, and
    distances [H,W,layers], by batches and joined."""
    c = model.config
    distances = 2 * 4 * c.image_size**2 * len(model.features.widths)
    return n * ((5 + c.scoring.noise_seeds) * _image_bytes(c) + distances)


def _bank(model: ContinualModel, images: int) -> tuple[int, int, int]:
    """Vectors of a class's memory bank, of so many images, the places of one, and the vectors' width."""
    c, shapes = model.config.scoring, model.features._features.output_shapes
    chosen = [shapes[layer] for layer in chosen_layers(c, len(shapes))]
    places = math.prod(chosen[len(chosen) // 2][1:3])
    return min(c.memory_bank, places * images) if c.calibrate else 0, places, sum(shape[-1] for shape in chosen)


def _making(model: ContinualModel, images: int, places: int, width: int) -> int:
    """What a memory bank takes while it is made: candidates, and the chunks of images that are read, with their features."""
    c = model.config
    chunk = c.scoring.batch_size * (3 * _image_bytes(c) + 2 * 4 * sum(math.prod(s) for s in model.features._features.output_shapes))
    return chunk + MemoryBank.making_bytes(c.scoring.memory_bank, min(images, BANK_IMAGES), places, width)


def _solving(streams: dict[str, tuple[int, str, int, int]]) -> int:
    """What bases are computed in, side by side: of each of the widest streams, a matrix of its width and directions; of a sketch its
    factor, of half as many rows more, and the directions in double."""
    of_each = (int(4 * d * rank * (3.5 if method == "sketch" else 1)) for d, method, rank, size in streams.values() if size)
    return sum(sorted(of_each, reverse=True)[: _core.get_threads()])


def _image_flops(model: ContinualModel) -> float:
    c = model.config
    condition, unet = model.drawing.samplers.whole.flops
    encode, decode, compare = (p.whole.flops / p.batch_size for p in (*model.autoencoder.programs, model.features.programs))
    drawn = (condition + c.diffusion.evaluations * unet) / c.scoring.batch_size + decode + compare
    return encode + decode + c.scoring.noise_seeds * drawn


def _checkpoint(model: ContinualModel, shapes: dict[str, tuple[int, ...]], bases: int, classes: int, bank: int) -> int:
    c = model.config
    weights = _elements(shapes.values()) + _elements(model.autoencoder.params.shapes().values())
    weights += 2 * c.autoencoder.latent_channels + (model.drawing.context.size if model.drawing.context is not None else 0)
    calibration = 0
    if c.scoring.calibrate:
        widths = model.features.widths
        moments = sum(C * C for C in widths) if c.scoring.distance == "mahalanobis" else 0
        calibration = c.image_size**2 + len(widths) + moments + bank
    if c.continual.basis_dtype != "float32":  # a file holds the narrow ones alone
        bases //= 3
    kept = model.strategy.kept_blocks * model.params.memory_bytes
    average = model.params.memory_bytes if c.training.ema_decay > 0 else 0  # moments are in files within a task alone
    return 4 * (weights + classes * calibration) + average + bases + kept


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _largest(shapes: dict[str, tuple[int, ...]], streams: dict[str, tuple[int, str, int, int]], n: int) -> tuple[Layer, ...]:
    found = []
    for name, shape in shapes.items():
        _, method, _, size = streams.get(name, (0, None, 0, None))
        found.append(Layer(name, shape, 4 * math.prod(shape), math.prod(shape[1:]), method, size))
    return tuple(sorted(found, key=lambda layer: -layer.bytes)[:n])


def _seconds(config: Config, flops: dict[str, float], parts: dict[str, int], steps: int) -> dict[str, float]:
    """From the speed of the first two levels of the same network, one sample at a time: products by their operations, the
    optimiser by the parameters."""
    widths = [config.unet.model_channels * factor for factor in config.unet.channel_mult[:2]]
    part = config.updated(
        {
            "unet.channel_mult": list(config.unet.channel_mult[:2]),
            "unet.num_heads": math.gcd(config.unet.num_heads, *widths),  # the last level, now another one, attends
            "unet.num_res_blocks": 1,
            "unet.attention_resolutions": [factor for factor in config.unet.attention_resolutions if factor <= 2],
            "continual.strategy": "finetune" if config.continual.strategy == "replay" else config.continual.strategy,
            "training.accumulate": 1,
            "training.batch_size": 1,
            "scoring.batch_size": 1,
            "diffusion.steps": 1,
            "diffusion.skip": 0,
            "diffusion.stop": 0,
        }
    )
    training, drawing = profile_training(part, repeats=2), profile_prediction(part, repeats=1)
    update = next(op.seconds for op in training.ops if op.name == "optimizer")
    products = sum(op.flops for op in training.ops)
    step = flops["step"] * (training.seconds - update) / products + update * parts["parameters"] / training.planned["parameters"]
    image = flops["image"] * drawing.seconds / sum(op.flops for op in drawing.ops)
    return {"step": step, "task": step * steps, "image": image}
