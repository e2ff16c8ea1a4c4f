"""What `gpu` measures: a line of JSON for every row, as soon as something of it is known.

A row's sides are the core and PyTorch, eager and compiled by `torch.compile`, with weights and images in channels-last
memory, cuDNN's algorithms tried out (`cudnn.benchmark`) and, of AdamW, the fused kernel. Times are wall-clock times between
NumPy arrays on the host and numbers on the host, transfers included: each side has then waited for the device. Single ops
instead run CHAIN times, one on the result of the other, on a device that holds their inputs, and are compiled only where
there is something to fuse: the others are the same library's calls in either way.

Both sides have the same precision: in "float32" PyTorch uses no TF32; in "tf32" it does as `set_float32_matmul_precision("high")`
says, and cuDNN alike; in "bfloat16" the denoiser is rounded, by `Config.precision` and by autocast, the other networks are in TF32, and
ops of PyTorch hold bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cdad
from cdad import _core
from cdad.autoencoder import Autoencoder
from cdad.features import FeatureDistance
from cdad.scoring import image_scores, score_maps
from cdad.weights.resnet import RESNETS

sys.path.append(str(Path(__file__).parent))
import gpu_kernels  # noqa: E402
import torch_models as models  # noqa: E402
from parity import schedule  # noqa: E402
from run import normal  # noqa: E402

STARTED = time.monotonic()
SEED, CHAIN, ROUNDS = 0, 20, 20
# The preset "sd15", so small that it proves the code and no more.
QUICK = {
    "image_size": 64,
    "unet.model_channels": 32,
    "unet.channel_mult": [1, 2],
    "unet.num_res_blocks": 1,
    "unet.attention_resolutions": [1],
    "unet.num_heads": 2,
    "unet.context_dim": 16,
    "unet.context_length": 3,
    "amn.hidden": [8, 8, 8, 8, 8, 8, 8],
    "amn.n_layers": 1,
    "amn.num_heads": 2,
    "amn.dim_feedforward": 16,
    "autoencoder.channels": 32,
    "autoencoder.ch_mult": [1, 1, 1, 1],
    "autoencoder.num_res_blocks": 1,
    "diffusion.steps": 2,
    "training.batch_size": 2,
}
BACKBONES = {False: "resnet50", True: "resnet18"}  # by whether it is quick
TOLERANCES = {"bfloat16": 5e-2, "tf32": 5e-2, "float32": 1e-3}  # of results, relative, by norm
SUFFIXES = {"bfloat16": "_bf16", "tf32": "_tf32", "float32": ""}  # of rows
NUMBERS = {"float32": 0, "bfloat16": 1, "tf32": 2}  # the attribute "precision" of ops
OUT_OF_TIME = "no time was left"

Run = Callable[[], Any]
stopping = False  # a signal says so: compile nothing more


@dataclass
class Bench:
    """Where and how is measured. ``ahead``: nothing is; what PyTorch compiles is put into its cache on the disk."""

    device: str
    quick: bool
    backend: str
    seconds: float
    deadline: float
    ahead: bool
    kernels: int = 0  # of each side of a row that are told of

    def __post_init__(self) -> None:
        # PyTorch on the CPU is no peer of a GPU, but serves small shapes where "cuda" is its kernels on the CPU.
        self.torch_device = "cuda" if self.device.startswith("cuda") and (torch.cuda.is_available() or not self.quick) else "cpu"
        self.core_device = "planned" if self.ahead else self.device
        torch.backends.cudnn.benchmark = True

    # ---- the sides ----------------------------------------------------------------------------------------

    def config(self, **changes: object) -> cdad.Config:
        return cdad.preset("sd15").updated((QUICK if self.quick else {}) | changes)

    def compiled(self, f: Callable) -> Callable:
        return torch.compile(f, backend=self.backend, dynamic=False)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return models.to_torch(array, self.torch_device, torch.channels_last)

    def weights(self, params: _core.Params | Mapping[str, np.ndarray]) -> models.Params:
        """The core's parameters as PyTorch's; ahead, any of those shapes."""
        if self.ahead:
            found = {name: 0.02 * torch.randn(shape, device=self.torch_device) for name, shape in params.shapes().items()}
        elif isinstance(params, _core.Params):
            found = {name: np.array(params[name]) for name in params.shapes()}
        else:
            found = {name: np.array(array) for name, array in params.items()}
        return models.from_core(found, self.torch_device, torch.channels_last)

    # ---- measuring ----------------------------------------------------------------------------------------

    def row(
        self, name: str, ours: Callable[[], Run], peers: dict[str, Callable[[], Run]], *, precision: str,
        memory: bool = False, tolerance: float | None = None,
    ) -> None:  # fmt: skip
        """Makes every side, warms it, and times all in turn; first without the compiled one, since a compiler may take all
        the time that is left. ``precision``: of PyTorch's float32 too. Results of the core that are further than ``tolerance``
        from the first peer's are an error."""
        row: dict[str, Any] = {"row": name, "ms": {}, "MiB": {}, "why": {}, "error": None}
        runs: dict[str, Run] = {}
        values: dict[str, np.ndarray] = {}
        if memory and self.core_device not in ("cpu", "planned"):
            _core.device_memory(self.device, True)  # the peak of what was before
        sides = {"cdad": ours} | {side: in_precision(make, precision) for side, make in peers.items()}
        for side, make in sides.items():
            compiled = side == "compiled"
            if compiled and self.backend == "none" or self.ahead and not compiled:
                continue
            if stopping or time.monotonic() > self.deadline:
                row["why"][side] = OUT_OF_TIME
                continue
            if compiled and not self.ahead:
                self.tell(row, runs, values, memory, tolerance, least=1)
            print(f"{name}: {side} at {time.monotonic() - STARTED:.0f} s", file=sys.stderr, flush=True)
            try:
                runs[side] = make()
                values[side] = np.asarray(runs[side](), np.float64)
                if not np.isfinite(values[side]).all():
                    raise ArithmeticError("results are not finite")
                if not self.ahead:
                    runs[side]()  # the core records its programs in their second run
            except Exception as error:
                drop(row, runs, side, error)
        if not self.ahead:
            self.tell(row, runs, values, memory, tolerance, least=3)
        for side, run in runs.items() if self.kernels else ():
            print(f"{name}, {side}:", *gpu_kernels.lines(gpu_kernels.trace_of(run), self.kernels), sep="\n", flush=True)
        runs.clear()
        gc.collect()
        if self.torch_device == "cuda":
            torch.cuda.empty_cache()  # the core does not share PyTorch's pool

    def tell(
        self, row: dict, runs: dict[str, Run], values: dict[str, np.ndarray], memory: bool, tolerance: float | None, least: int
    ) -> None:
        """Times what is there, ``least`` times or more, and tells the row so far."""
        self.time(row, runs, memory, least)
        if memory and "cdad" in runs and self.device != "cpu":
            row["MiB"]["cdad"] = _core.device_memory(self.device)["peak"] / 2**20
        theirs = next((side for side in values if side != "cdad"), None)
        if tolerance is not None and "cdad" in values and theirs:
            wanted = values[theirs]
            row["error"] = float(np.linalg.norm(values["cdad"] - wanted) / (np.linalg.norm(wanted) + 1e-30))
            if row["error"] > tolerance:
                row["why"]["error"] = f"results are {row['error']:.1e} from PyTorch's; {tolerance:.0e} is allowed"
        print(json.dumps(row), flush=True)

    def time(self, row: dict, runs: dict[str, Run], memory: bool, least: int) -> None:
        times: dict[str, list[float]] = {side: [] for side in runs}
        began, n, cuda = time.monotonic(), 0, self.torch_device == "cuda"
        while runs and n < ROUNDS and time.monotonic() - began < self.seconds * (10 if n < least else 1):
            for side in list(runs)[:: 1 if n % 2 else -1]:
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                try:
                    runs[side]()
                except Exception as error:
                    drop(row, runs, side, error)
                    continue
                times[side].append(1e3 * (time.perf_counter() - start) / getattr(runs[side], "repeats", 1))
                if memory and cuda and side != "cdad":
                    row["MiB"][side] = max(row["MiB"].get(side, 0), torch.cuda.max_memory_allocated() / 2**20)
            n += 1
        row["ms"] = {side: statistics.median(times[side]) for side in runs}


def drop(row: dict, runs: dict[str, Run], side: str, error: Exception) -> None:
    """A side that fails is not timed, and the row says why."""
    runs.pop(side, None)
    row["why"][side] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]


def in_precision(make: Callable[[], Run], precision: str) -> Callable[[], Run]:
    """The peer with its float32 as ``precision`` says."""

    def made() -> Run:
        run = make()

        @functools.wraps(run)
        def call() -> Any:
            torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
            torch.backends.cudnn.allow_tf32 = precision != "float32"
            return run()

        return call

    return made


def fill_zeros(params: _core.Params) -> None:
    """What starts at zero becomes random: no error may hide behind it, and products of zeros may be faster than others."""
    for i, (name, shape) in enumerate(params.shapes().items()):
        if len(shape) > 1 and not params[name].any():
            params[name] = normal(*shape, stream=1000 + i) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)


def context_of(config: cdad.Config, n: int) -> np.ndarray:
    return normal(n, config.unet.context_length, config.unet.context_dim, stream=3)


def images_of(config: cdad.Config, n: int, stream: int) -> np.ndarray:
    return np.clip(normal(n, config.image_size, config.image_size, 3, stream=stream) * 0.2 + 0.5, 0, 1)


# ---- entries ----------------------------------------------------------------------------------------------


def train(b: Bench, precision: str, moments: str = "float32") -> None:
    """A training step of "sd15" at its batch size, with its recomputation; the peer keeps its activations and float32 moments,
    and draws noise and timesteps on the device. ``moments``: "float32" or "8bit", the core's."""
    config = b.config(precision=precision, **{"training.moments": moments})
    core, n, side = config.denoiser(), config.training.batch_size, config.latent_size
    params = _core.Params(b.core_device)
    trainer = _core.Trainer(params, core, n, config.optimizer(), SEED, **config.batching())
    latent, context = normal(n, side, side, config.autoencoder.latent_channels), context_of(config, n)
    image, perturbed = (images_of(config, n, stream) for stream in (1, 2))
    signal_of = torch.tensor(schedule(config), dtype=torch.float32, device=b.torch_device)

    @functools.cache
    def peer() -> tuple[models.Params, torch.optim.Optimizer]:
        weights = b.weights(params)
        return weights, models.adamw(weights, config)

    def ours() -> Run:
        fill_zeros(params)
        return lambda: trainer.step(latent, image, perturbed, context)[0]

    def theirs(compiled: Callable) -> Run:
        step = models.training_step(peer()[0], config, peer()[1], compiled)

        def run() -> float:
            arrays = {"latent": latent, "image": image, "perturbed": perturbed, "context": context}
            given = {name: b.tensor(array) for name, array in arrays.items()}
            t = torch.randint(len(signal_of), (n,), device=b.torch_device)
            s = signal_of[t].view(-1, 1, 1, 1)
            return step(given | {"noise": torch.randn_like(given["latent"]), "t": t, "signal": s, "sigma": (1 - s**2).sqrt()})

        return run

    peers = {"eager": lambda: theirs(lambda f: f), "compiled": lambda: theirs(b.compiled)}
    name = f"sd15_train_step{SUFFIXES[precision]}" + ("" if moments == "float32" else f"_{moments}_moments")
    b.row(name, ours, peers, precision=precision, memory=True)


def score(b: Bench, precision: str) -> None:
    """From images to scores, 32 of them: E, the condition, DDIM, D of both latents, ResNet-50 and the map's score, as
    `ContinualModel.predict` does it, without calibration."""
    config = b.config(precision=precision)
    core, n, size = config.denoiser(), 2 if b.quick else 32, config.image_size
    params, backbone = _core.Params(b.core_device), BACKBONES[b.quick]
    sampler = _core.Sampler(params, core, n)
    params.allocate(SEED)
    autoencoder = Autoencoder(config.autoencoder, size, n, load=False, tf32=config.tf32, beside=params)
    features = FeatureDistance(backbone, autoencoder, size, n, load=False)
    images, context, how = images_of(config, n, 1), context_of(config, n), {"steps": config.diffusion.steps}
    latent_shape = (n, config.latent_size, config.latent_size, config.autoencoder.latent_channels)

    def ours() -> Run:
        fill_zeros(params)

        def place(array: np.ndarray) -> np.ndarray | _core.DeviceArray:
            return array if b.device == "cpu" else _core.DeviceArray(array, b.device)

        def run() -> np.ndarray:  # as `ContinualModel.predict`
            there = place(images)
            latents = autoencoder.encode(there)
            start = sampler.start(np.asarray(latents), np.arange(n), SEED, **how)
            drawn = autoencoder.decode(place(sampler.denoise(there, start, context, **how)))
            distances = features(autoencoder.decode(latents), drawn)
            return image_scores(score_maps(distances, None, config.scoring, size), config.scoring)

        return run

    @functools.cache
    def peer() -> tuple[models.Params, models.Params, models.Params]:
        if b.ahead:
            resnet = _core.Params("planned")
            _core.Network(resnet, "resnet", RESNETS[backbone].core_config(), n, (size, size))
        return b.weights(params), b.weights(autoencoder.params), b.weights(resnet if b.ahead else features.weights())

    def theirs(compiled: Callable) -> Run:
        denoiser, vae, resnet = peer()
        c, scale = autoencoder.core_config(), float(autoencoder.scale[0])
        mean, std = (torch.from_numpy(x).to(b.torch_device).view(1, -1, 1, 1) for x in (features.mean, features.std))
        stride = config.diffusion.num_train_timesteps // config.diffusion.steps
        visited, signal_of = [i * stride + 1 for i in reversed(range(config.diffusion.steps))], schedule(config).tolist()
        offset = sampler.start(np.zeros(latent_shape, np.float32), np.arange(n), SEED, **how)  # the noise, scaled
        rounded = functools.partial(torch.autocast, b.torch_device, torch.bfloat16, enabled=precision == "bfloat16")
        scoring, layers = config.scoring, len(config.scoring.layers)

        @compiled
        def encode(image: torch.Tensor) -> torch.Tensor:
            return models.vae_encode(vae, c, 2 * image - 1)[:, : config.autoencoder.latent_channels] / scale

        @compiled
        def condition(image: torch.Tensor) -> torch.Tensor:
            with rounded():
                return models.amn_nonlocal(denoiser, core["amn"], models.amn_local(denoiser, core["amn"], image))

        @compiled
        def noise(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
            with rounded():
                return models.unet(denoiser, core["unet"], x, t, context, control)

        @compiled
        def decode(latent: torch.Tensor) -> torch.Tensor:
            return (models.vae_decode(vae, c, latent * scale) * 0.5 + 0.5).clamp(0, 1)

        @compiled
        def scores(pairs: torch.Tensor) -> torch.Tensor:
            found = models.resnet(resnet, RESNETS[backbone].core_config(), (pairs - mean) / std)[:layers]
            return models.scores(found, (size, size), scoring.sigma * size / 256, scoring.top)

        def run() -> np.ndarray:
            with torch.inference_mode():
                image, words = b.tensor(images), b.tensor(context)
                latent, control = encode(image), condition(image)
                start = signal_of[-1] * latent + b.tensor(offset)
                drawn = models.ddim(lambda x, t: noise(x, t, words, control).float(), start, visited, signal_of)
                return scores(torch.cat([decode(latent), decode(drawn)])).cpu().numpy()

        return run

    name = f"sd15_images_to_scores_{n}{SUFFIXES[precision]}"
    peers = {"eager": lambda: theirs(lambda f: f), "compiled": lambda: theirs(b.compiled)}
    # Rounding is amplified from step to step: where it is coarse, the error is told and not judged.
    b.row(name, ours, peers, precision=precision, memory=True, tolerance=1e-2 if precision == "float32" else np.inf)


def vae(b: Bench) -> None:
    """The autoencoder's halves, 12 images."""
    config, n = b.config(), 1 if b.quick else 12
    size, c = config.image_size, Autoencoder(config.autoencoder, config.image_size, 1, load=False, device="planned").core_config()
    sides = {"encode": (size, 3, models.vae_encode), "decode": (config.latent_size, c["z_channels"], models.vae_decode)}
    for (part, (side, channels, peer)), precision in itertools.product(sides.items(), ("tf32", "float32")):
        params = _core.Params(b.core_device)
        network = _core.Network(params, f"vae_{part}", c, n, (side, side), tf32=precision == "tf32")
        params.allocate(SEED)
        x, weights = normal(n, side, side, channels), functools.cache(functools.partial(b.weights, params))

        def ours(network=network, x=x) -> Run:
            return lambda: network.run(x)[0]

        def theirs(compiled: Callable, peer=peer, x=x, weights=weights) -> Run:
            w = weights()
            f = compiled(lambda tensor: peer(w, c, tensor))

            def run() -> np.ndarray:
                with torch.inference_mode():
                    return f(b.tensor(x)).permute(0, 2, 3, 1).cpu().numpy()

            return run

        peers = {"eager": functools.partial(theirs, lambda f: f), "compiled": functools.partial(theirs, b.compiled)}
        b.row(f"vae_{part}{SUFFIXES[precision]}", ours, peers, precision=precision, tolerance=TOLERANCES[precision])


@dataclass(frozen=True)
class Op:
    """An op whose result has the shape of its first input. ``peer``: of PyTorch's tensors."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: dict[str, float]
    peer: Callable[..., torch.Tensor]
    precisions: tuple[str, ...] = tuple(SUFFIXES)  # that the core has
    fuses: bool = False  # whether torch.compile has something to fuse


def op_table(n: int, shrink: int) -> dict[str, Op]:
    """Shapes of "sd15" at n images; widths and sides are divided by ``shrink``."""
    F = torch.nn.functional
    same, table = {"pad_t": 1, "pad_l": 1, "pad_b": 1, "pad_r": 1}, {}
    levels = [(c // shrink, max(2, s // shrink)) for c, s in ((320, 32), (640, 16), (1280, 8))]
    for c, s in levels:
        shapes = ((n, s, s, c), (c, 3, 3, c), (c,))
        table[f"conv3x3_{c}x{s}"] = Op("conv2d", shapes, same, lambda x, w, bias: F.conv2d(x, w, bias, padding=1))
    for c, s in levels:
        for kind, keys in (("self", s * s), ("cross", 77)):
            shapes = ((n, s * s, c), (n, keys, c), (n, keys, c))
            attend = functools.partial(models.attend, heads=8)
            table[f"attention_{kind}_{s * s}x{c}"] = Op("attention", shapes, {"heads": 8}, attend, ("tf32", "float32"))
    for c, s in levels[:1]:
        groups = min(32, c // 2)
        table[f"linear_{c}x{c}"] = Op("linear", ((n, s * s, c), (c, c), (c,)), {}, F.linear)
        table[f"group_norm_silu_{c}x{s}"] = Op(
            "group_norm", ((n, s, s, c), (c,), (c,)), {"groups": groups, "eps": 1e-5, "silu": 1},
            lambda x, w, bias: F.silu(F.group_norm(x, groups, w, bias, 1e-5)), ("float32",), fuses=True,
        )  # fmt: skip
    return table


def ops(b: Bench) -> None:
    chain = 2 if b.quick else CHAIN
    for name, op in op_table(1 if b.quick else 12, 20 if b.quick else 1).items():
        arrays = [normal(*s, stream=i) / np.float32(np.sqrt(np.prod(s[1:]) if i == 1 else 1)) for i, s in enumerate(op.shapes)]
        if op.op == "attention":
            arrays[1] = normal(*op.shapes[1], stream=1)

        def ours(precision: str, op=op, arrays=arrays) -> Run:
            attributes = op.attributes | ({"precision": NUMBERS[precision]} if len(op.precisions) > 1 else {})

            def program(length: int, total: bool) -> _core.Program:
                graph = _core.Graph()
                x, *others = (graph.const(array) for array in arrays)
                for _ in range(length):
                    x = graph.op(op.op, [x, *others], **attributes)[0]
                return graph.compile([graph.op("reduce_sum", [x], axes=2 ** len(op.shapes[0]) - 1)[0] if total else x])

            whole, (first,) = program(chain, True), program(1, False).run({})
            return chained(whole, first)

        def chained(whole: _core.Program, first: np.ndarray) -> Run:
            results = iter([first])

            def run() -> np.ndarray:
                (total,) = whole.run({})
                return next(results, total)

            run.repeats = chain
            return run

        def theirs(compiled: Callable, dtype: torch.dtype, layout: torch.memory_format, op=op, arrays=arrays) -> Run:
            x, *others = (models.to_torch(array, b.torch_device, layout).to(dtype) for array in arrays)

            @compiled
            def whole(x: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
                for _ in range(chain):
                    x = op.peer(x, *others)
                return x.sum()

            with torch.inference_mode():
                first = op.peer(x, *others).float().cpu()
            results = iter([first.permute(0, 2, 3, 1) if first.ndim == 4 else first])

            def run() -> Any:
                with torch.inference_mode():
                    total = whole(x, others).item()
                return next(results, total)

            run.repeats = chain
            return run

        for precision in op.precisions:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            make = functools.partial(theirs, lambda f: f, dtype)
            peers = {"eager": functools.partial(make, torch.channels_last)}
            if len(op.shapes[0]) == 4:
                peers["eager, channels first"] = functools.partial(make, torch.contiguous_format)
            if op.fuses:
                peers["compiled"] = functools.partial(theirs, b.compiled, dtype, torch.channels_last)
            mine = functools.partial(ours, precision)
            b.row(f"{name}{SUFFIXES[precision]}", mine, peers, precision=precision, tolerance=TOLERANCES[precision])


ENTRIES: dict[str, Callable[[Bench], None]] = {
    "vae": vae,
    "ops": ops,
    **{f"train{suffix}": functools.partial(train, precision=precision) for precision, suffix in SUFFIXES.items()},
    "train_bf16_8bit_moments": functools.partial(train, precision="bfloat16", moments="8bit"),
    **{f"score{suffix}": functools.partial(score, precision=precision) for precision, suffix in SUFFIXES.items()},
}


def machine(device: str) -> dict[str, Any]:
    info, cuda = _core.build_info(), torch.cuda.is_available()
    found = {"device": device, "cpu": f"{platform.machine()}, {info['isa']}, {_core.get_threads()} threads"}
    found |= {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    if cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpu": torch.cuda.get_device_name()}
    if device.startswith("cuda"):
        found |= {"cublas": _core.cuda_info().get("cublas")}
    return found


def stop(*_: object) -> None:
    global stopping
    stopping = True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="+", choices=list(ENTRIES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; none: do not compile")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timings a row")
    parser.add_argument("--left", type=float, default=1e9, help="seconds after which nothing more is begun")
    parser.add_argument("--ahead", action="store_true", help="compile what PyTorch needs, and measure nothing")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="after each row, the N kernels that take most of a GPU's time")
    a = parser.parse_args()
    if a.kernels and not torch.cuda.is_available():
        parser.error("--kernels wants a GPU, and a PyTorch that sees it")
    deadline = time.monotonic() + a.left
    signal.signal(signal.SIGTERM, stop)
    if not a.ahead:
        _core.set_device(a.device)
        torch.set_num_threads(_core.get_threads())
    b = Bench(a.device, a.quick, a.backend, a.seconds, deadline, a.ahead, a.kernels)
    print(json.dumps({"machine": machine(b.core_device)}), flush=True)
    for name in a.entries:
        if stopping:
            break
        try:
            ENTRIES[name](b)
        except Exception as error:  # what is common to all sides of the entry's rows
            print(json.dumps({"row": name, "why": {"cdad": f"{type(error).__name__}: {error}"[:300]}}), flush=True)
        torch.compiler.reset()
        print(json.dumps({"done": name}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
