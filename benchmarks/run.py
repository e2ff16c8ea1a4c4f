"""The core beside PyTorch on the CPU: same shapes, weights and float32, same number of threads, alternating.

    python benchmarks/run.py [--only NAME ...] [--quick] [--rounds N] [--compile] [--threads N] [--json FILE]

Every measurement runs in a process of its own, so that its peak memory is its own; the sides take turns, and the medians
over all rounds are shown. The peer is eager PyTorch, or with ``--compile`` the better of eager and `torch.compile`.
``--quick`` measures once for a short time. A ratio above 1 means that the core is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cdad
from cdad import _core, metrics, process_memory
from cdad.results import format_table

sys.path.insert(0, str(Path(__file__).parent))

SEED = 0


def torch_models():
    """PyTorch and the peers' models; imported by the peers' processes only."""
    import torch
    import torch_models as models

    return torch, models


def normal(*shape: int, stream: int = 0) -> np.ndarray:
    return _core.random_normal(shape, SEED, stream)


# ---- what is measured: (side) -> a function that does it once ---------------------------------------------------


def one_op(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, float], peer: Callable) -> Callable[[str], Callable]:
    """A graph of one op on random inputs, against ``peer(torch, *tensors)``."""

    def make(side: str) -> Callable[[], Any]:
        arrays = [normal(*shape, stream=i) / np.float32(np.sqrt(shape[-1])) for i, shape in enumerate(shapes)]
        if side == "cdad":
            graph = _core.Graph()
            values = [graph.input(str(i), shape) for i, shape in enumerate(shapes)]
            program = graph.compile([graph.op(op, values, **attributes)[0]])
            feeds = dict(zip(values, arrays, strict=True))
            return lambda: program.run(feeds)
        torch, models = torch_models()
        tensors = [models.to_torch(array) for array in arrays]
        return without_gradients(torch, side, lambda: peer(torch, *tensors))

    return make


def without_gradients(torch, side: str, run: Callable) -> Callable[[], Any]:
    compiled = torch.compile(run) if side == "compiled" else run

    def call() -> Any:
        with torch.inference_mode():
            return compiled()

    return call


def conv3x3(channels: int, size: int, batch: int = 2) -> Callable[[str], Callable]:
    same = {"pad_t": 1, "pad_l": 1, "pad_b": 1, "pad_r": 1}
    shapes = [(batch, size, size, channels), (channels, 3, 3, channels), (channels,)]
    return one_op("conv2d", shapes, same, lambda torch, x, w, b: torch.conv2d(x, w, b, padding=1))


def attention(tokens: int, width: int, heads: int, batch: int = 2) -> Callable[[str], Callable]:
    shapes = [(batch, tokens, width)] * 3
    return one_op("attention", shapes, {"heads": heads}, lambda torch, q, k, v: torch_models()[1].attend(q, k, v, heads))


def group_norm_silu(channels: int, size: int, batch: int = 2) -> Callable[[str], Callable]:
    shapes = [(batch, size, size, channels), (channels,), (channels,)]
    return one_op(
        "group_norm",
        shapes,
        {"groups": 32, "eps": 1e-5, "silu": 1},
        lambda torch, x, w, b: torch.nn.functional.silu(torch.nn.functional.group_norm(x, 32, w, b, 1e-5)),
    )


def network(kind: str, config: dict, size: tuple[int, int], inputs: list[np.ndarray], peer: Callable) -> Callable:
    """One of the core's networks with random weights, against ``peer(models, params, *tensors)``."""

    def make(side: str) -> Callable[[], Any]:
        params = _core.Params()
        net = _core.Network(params, kind, config, len(inputs[0]), size)
        params.allocate(SEED)
        if side == "cdad":
            return lambda: net.run(*inputs)
        torch, models = torch_models()
        weights = models.from_core({name: params[name] for name in params.shapes()})
        tensors = [models.to_torch(array) for array in inputs]
        del net, params
        return without_gradients(torch, side, lambda: peer(models, weights, *tensors))

    return make


def denoiser_forward(preset: str, batch: int) -> Callable[[str], Callable]:
    config = cdad.preset(preset)
    core, side = config.denoiser(), config.latent_size
    x, t = normal(batch, side, side, config.autoencoder.latent_channels), np.full(batch, 500, np.float32)
    control = normal(batch, side, side, config.unet.model_channels, stream=1)
    inputs = [x, t, control]
    if config.unet.context_dim:
        inputs.append(normal(batch, config.unet.context_length, config.unet.context_dim, stream=2))

    def peer(models, weights, x, t, control, context=None):
        return models.unet(weights, core["unet"], x, t, context, control)

    return network("unet", core, (side, side), inputs, peer)


def amn_forward(preset: str, batch: int) -> Callable[[str], Callable]:
    config = cdad.preset(preset)
    core, size = config.denoiser(), config.image_size

    def peer(models, weights, image):
        return models.amn_nonlocal(weights, core["amn"], models.amn_local(weights, core["amn"], image))

    return network("condition", core, (size, size), [normal(batch, size, size, 3)], peer)


def vae(part: str, size: int) -> Callable[[str], Callable]:
    config = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "norm_groups": 32}
    side, channels = (size, 3) if part == "encode" else (size // 8, 4)

    def peer(models, weights, x):
        return (models.vae_encode if part == "encode" else models.vae_decode)(weights, config, x)

    return network(f"vae_{part}", config, (side, side), [normal(1, side, side, channels)], peer)


def train_step(preset: str, batch: int, **changes: object) -> Callable[[str], Callable]:
    config = cdad.preset(preset).updated({"training.batch_size": batch, "training.clip_norm": 0.0} | changes)
    core, side, size = config.denoiser(), config.latent_size, config.image_size

    def make(side_name: str) -> Callable[[], Any]:
        latent = normal(batch, side, side, config.autoencoder.latent_channels)
        image, perturbed = (normal(batch, size, size, 3, stream=i) * 0.2 + 0.5 for i in (1, 2))
        context = None
        if config.unet.context_dim:
            context = normal(batch, config.unet.context_length, config.unet.context_dim, stream=3)
        params = _core.Params()
        if side_name == "cdad":
            trainer = _core.Trainer(params, core, batch, config.optimizer(), SEED, **config.batching())
            return lambda: trainer.step(latent, image, perturbed, context)
        _core.Sampler(params, core, 1)  # for the parameters alone
        params.allocate(SEED)
        torch, models = torch_models()
        weights = models.from_core({name: params[name] for name in params.shapes()})
        del params
        tensors = {"latent": latent, "image": image, "perturbed": perturbed, "noise": normal(*latent.shape, stream=4)}
        given = {name: models.to_torch(array) for name, array in tensors.items()}
        given |= {"t": torch.full((batch,), 500), "context": None if context is None else torch.from_numpy(context)}
        given |= {name: torch.full((batch, 1, 1, 1), 0.5**0.5) for name in ("signal", "sigma")}
        compiled = [torch.compile] if side_name == "compiled" else []
        step = models.training_step(weights, config, models.adamw(weights, config), *compiled)
        return lambda: step(given)

    return make


def image_to_score(n: int) -> Callable[[str], Callable]:
    """The default pipeline of "small", from decoded images to scores, without calibration."""
    config = cdad.preset("small").updated({"scoring.backbone": "efficientnet_lite0", "scoring.calibrate": False})

    def make(side: str) -> Callable[[], Any]:
        model = cdad.ContinualModel(config)
        for i, name in enumerate(model.params.shapes()):  # nothing may hide behind an initial zero
            shape = model.params[name].shape
            spread = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:]))
            model.params[name] = normal(*shape, stream=i) * spread + (len(shape) == 1 and name.endswith("weight"))
        model.ledger.append({"classes": ["any"]})
        images = np.clip(normal(n, config.image_size, config.image_size, 3, stream=1000) * 0.2 + 0.5, 0, 1)
        if side == "cdad":
            return lambda: model.predict(images).scores
        torch, models = torch_models()
        patch, channels = config.autoencoder.downsampling, config.autoencoder.latent_channels
        pixels = np.zeros((patch * patch * 3, config.image_size, config.image_size, 3), np.float32)
        pixels[:, :patch, :patch] = np.eye(len(pixels), dtype=np.float32).reshape(-1, patch, patch, 3)
        basis = model.autoencoder.encode(pixels)[:, 0, 0].T.reshape(channels, patch, patch, 3)
        side_length = config.latent_size
        sampler = _core.Sampler(model.params, config.denoiser(), 1)
        zeros = np.zeros((1, side_length, side_length, channels), np.float32)
        features = model.features
        given = {
            "basis": models.to_torch(basis),
            "noise": models.to_torch(sampler.start(zeros, [0], config.seed)),
            "scale": torch.from_numpy(model.autoencoder.scale).view(1, -1, 1, 1),
            "shift": torch.from_numpy(model.autoencoder.shift).view(1, -1, 1, 1),
            "mean": torch.tensor(features.mean).view(1, -1, 1, 1),
            "std": torch.tensor(features.std).view(1, -1, 1, 1),
            "sigma": config.scoring.sigma * config.image_size / 256,
            "top": config.scoring.top,
        }
        weights = models.from_core({name: model.params[name] for name in model.params.shapes()})
        backbone = models.from_core(features.weights())
        tensor, core = models.to_torch(images), config.denoiser()
        del model, sampler
        return without_gradients(torch, side, lambda: models.image_scores(weights, core, backbone, given, tensor))

    return make


def aupro(n: int) -> Callable[[str], Callable]:
    """Exact AUPRO of n maps of 256 x 256, a third of them with up to three defects, against loops over thresholds, maps
    and regions by scikit-image, as the evaluation codes of the field have them: 200 thresholds, of which two are timed."""

    def make(side: str) -> Callable[[], Any]:
        rng = np.random.default_rng(SEED)
        maps, masks = rng.random((n, 256, 256), np.float32), np.zeros((n, 256, 256), bool)
        for i in range(0, n, 3):
            for _ in range(rng.integers(1, 4)):
                top, left, height, width = (int(x) for x in rng.integers((0, 0, 8, 8), (200, 200, 56, 56)))
                masks[i, top : top + height, left : left + width] = True
        maps += masks * np.float32(0.3)
        if side == "cdad":
            return lambda: metrics.aupro(masks, maps)
        from skimage import measure  # pip install scikit-image

        thresholds = np.linspace(maps.min(), maps.max(), 200)

        def loops() -> None:
            for threshold in thresholds[[60, 140]]:
                overlaps, found = [], maps > threshold
                for mask, above in zip(masks, found, strict=True):
                    for region in measure.regionprops(measure.label(mask)):
                        rows, columns = region.coords.T
                        overlaps.append(above[rows, columns].sum() / region.area)
                np.mean(overlaps), np.logical_and(~masks, found).sum() / (~masks).sum()

        loops.share = 2 / 200
        return loops

    return make


BENCHMARKS: dict[str, Callable[[], Callable[[str], Callable]]] = {
    "small_train_step": lambda: train_step("small", 8),
    "conv3x3_320x32": lambda: conv3x3(320, 32),
    "conv3x3_1280x8": lambda: conv3x3(1280, 8),
    "attention_1024x320": lambda: attention(1024, 320, 8),
    "group_norm_silu": lambda: group_norm_silu(320, 32),
    "vae_encode": lambda: vae("encode", 256),
    "vae_decode": lambda: vae("decode", 256),
    "amn_forward": lambda: amn_forward("sd15", 1),
    "sd15_forward": lambda: denoiser_forward("sd15", 1),
    "sd15_train_step": lambda: train_step("sd15", 1),
    # The peer's moments are float32 in both.
    "sd15_train_step_bf16_moment": lambda: train_step("sd15", 1, **{"training.moments": "bfloat16"}),
    "sd15_train_step_8bit_moments": lambda: train_step("sd15", 1, **{"training.moments": "8bit"}),
    # The peer keeps its activations.
    "sd15_train_step_recompute": lambda: train_step("sd15", 1, **{"training.recompute": True}),
    # The peer runs under torch.autocast.
    "small_train_step_bf16": lambda: train_step("small", 8, precision="bfloat16"),
    "sd15_train_step_bf16": lambda: train_step("sd15", 1, precision="bfloat16"),
    "image_to_score": lambda: image_to_score(1),
    "images_to_scores_8": lambda: image_to_score(8),
    "aupro_1000": lambda: aupro(1000),
}
LOOPS = {"aupro_1000"}  # the peer is not PyTorch
LABELS = {"torch": "PyTorch, eager", "compiled": "PyTorch, compiled", "loops": "loops by scikit-image"}
# Peak memory of these is a record of its own.
MEMORY = {
    "sd15_train_step": "sd15_train_peak_memory",
    "sd15_train_step_bf16_moment": "sd15_train_peak_memory_bf16_moment",
    "sd15_train_step_8bit_moments": "sd15_train_peak_memory_8bit_moments",
    "sd15_train_step_recompute": "sd15_train_peak_memory_recompute",
    "small_train_step": "small_train_peak_memory",
}


# ---- measuring --------------------------------------------------------------------------------------------


def measure(name: str, side: str, threads: int, seconds: float) -> dict[str, Any]:
    """In this process: the times of runs that together take at least ``seconds`` (at least 3 runs), and the peak."""
    _core.set_threads(threads)
    if side in ("torch", "compiled"):
        torch, _ = torch_models()
        torch.set_num_threads(threads)
    run = BENCHMARKS[name]()(side)
    share = getattr(run, "share", 1)  # of the whole work, in one call
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 1000):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) / share)
    return {"times": times, "peak": process_memory.peak()}


def spawn(name: str, side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", name, side, "--threads", str(arguments.threads)]
    if arguments.quick:
        command.append("--quick")
    here = str(Path(cdad.__file__).resolve().parents[1])  # the workers measure the package that this process has
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": here}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, arguments: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    sides = ["cdad", "loops"] if name in LOOPS else ["cdad", "torch", "compiled"] if arguments.compile else ["cdad", "torch"]
    found: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(1 if arguments.quick else arguments.rounds):
        for side in sides:
            found[side].append(spawn(name, side, arguments))
    seconds = {side: statistics.median(t for run in runs for t in run["times"]) for side, runs in found.items()}
    peak = {side: statistics.median(run["peak"] for run in runs) for side, runs in found.items()}
    best = min(sides[1:], key=seconds.__getitem__)
    label = LABELS[best]

    def record(name: str, value: float, unit: str, peer: float) -> dict[str, Any]:
        return {"name": name, "value": value, "unit": unit, "peer": label, "peer_value": peer, "ratio": peer / value,
                "command": command}  # fmt: skip

    records = [record(name, 1e3 * seconds["cdad"], "ms", 1e3 * seconds[best])]
    if name in MEMORY:
        records.append(record(MEMORY[name], peak["cdad"] / 2**20, "MiB", peak[best] / 2**20))
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", default=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker, arguments.threads, 0.5 if arguments.quick else 3.0)))
        return 0
    command = shlex.join(["python", *sys.argv])
    records: list[dict[str, Any]] = []
    for name in arguments.only:
        found = compare(name, arguments, command)
        records += found
        for r in found:
            print(f"{r['name']}: {r['value']:.2f} {r['unit']}, {r['peer']} {r['peer_value']:.2f}, ratio {r['ratio']:.2f}", flush=True)
        if arguments.json:  # after each: what an interrupted run has measured is not lost
            Path(arguments.json).write_text(json.dumps(records, indent=1) + "\n")
    columns = ["name", "value", "unit", "peer", "peer_value", "ratio"]
    print("\n" + format_table(records, columns, digits=2))
    info = _core.build_info()
    print(f"{platform.machine()}, {arguments.threads} threads, {info['isa']}, Python {platform.python_version()}, NumPy {np.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
