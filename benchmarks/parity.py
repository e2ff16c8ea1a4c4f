"""How far the core's models are from others' code: one table.

    python benchmarks/parity.py [--json FILE] [--markdown docs/PARITY.md]

Every weight is random, so that nothing hides behind an initial zero. An error is |found - wanted| / |wanted|, by norm; of
several outputs, and of the gradients of all parameters, the largest counts. Peers are plain PyTorch
(benchmarks/torch_models.py) and, where they are installed, diffusers and transformers; tests/test_parity.py runs the same
comparisons.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cdad import _core
from cdad.results import write_atomically
from cdad.text import empty_prompt
from cdad.weights.resnet import RESNETS, load_resnet

sys.path.insert(0, str(Path(__file__).parent))
import torch_models as peer  # noqa: E402

BOUND = 1e-4  # what every error is below


@dataclass(frozen=True)
class Row:
    model: str
    config: str
    what: str
    error: float
    against: str


@dataclass(frozen=True)
class Case:
    """A comparison that needs the packages ``needs`` beside PyTorch."""

    compare: Callable[[], Iterator[Row]]
    name: str
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def against(package: str) -> str:
    return f"{package} {version(package)}"


PYTORCH = against("torch").replace("torch", "PyTorch", 1)


def randomize(params: _core.Params, rng: np.random.Generator) -> None:
    """Every parameter random, of a scale that keeps activations near one."""
    for name, shape in params.shapes().items():
        if len(shape) == 1:
            params[name][...] = rng.normal(float(name.endswith("weight")), 0.1, shape)
        else:
            params[name][...] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Images [N,H,W,C] as [N,C,H,W]; anything else as it is."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array))


def to_core(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def dict_of(params: _core.Params) -> dict[str, np.ndarray]:
    return {name: params[name] for name in params.shapes()}


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / (np.linalg.norm(wanted) + 1e-30))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


# ---- ResNet -----------------------------------------------------------------------------------------------


def random_resnet(config: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters and statistics of all layers, by torchvision's names, a classifier among them."""
    state: dict[str, np.ndarray] = {}

    def layer(conv: str, norm: str, out: int, inside: int, kernel: int) -> int:
        scale = 1 / np.sqrt(inside * kernel * kernel)
        state[f"{conv}.weight"] = rng.normal(0, scale, (out, inside, kernel, kernel))
        state[f"{norm}.weight"], state[f"{norm}.bias"] = rng.uniform(0.5, 1.5, out), rng.normal(0, 0.2, out)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = rng.normal(0, 0.2, out), rng.uniform(0.5, 2, out)
        state[f"{norm}.num_batches_tracked"] = np.array(7)
        return out

    width = layer("conv1", "bn1", config["channels"], 3, 7)
    for stage, blocks in enumerate(config["blocks"]):
        planes = config["channels"] << stage
        for i in range(blocks):
            name, start = f"layer{stage + 1}.{i}", width
            if config["bottleneck"]:
                width = layer(f"{name}.conv1", f"{name}.bn1", planes * config["widening"], width, 1)
                width = layer(f"{name}.conv2", f"{name}.bn2", width, width, 3)
                width = layer(f"{name}.conv3", f"{name}.bn3", 4 * planes, width, 1)
            else:
                width = layer(f"{name}.conv1", f"{name}.bn1", planes, width, 3)
                width = layer(f"{name}.conv2", f"{name}.bn2", planes, width, 3)
            if i == 0 and (stage > 0 or start != width):
                layer(f"{name}.downsample.0", f"{name}.downsample.1", width, start, 1)
    state["fc.weight"], state["fc.bias"] = rng.normal(size=(10, width)), rng.normal(size=10)
    return {k: np.asarray(v, np.int64 if v.ndim == 0 else np.float32) for k, v in state.items()}


def resnet(name: str) -> Iterator[Row]:
    """Features of a file as torchvision writes it, of an eighth of the real widths."""
    config, rng = replace(RESNETS[name], channels=8).core_config(), np.random.default_rng(0)
    state = {k: torch.from_numpy(v) for k, v in random_resnet(config, rng).items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder, "weights.pth"))
        tensors, mean, std = load_resnet(name, Path(folder, "weights.pth"))
    params = _core.Params()
    network = _core.Network(params, "resnet", config, 2, (64, 48))
    assert set(params.shapes()) == set(tensors)
    params.allocate(0)
    for key, tensor in tensors.items():
        params[key][...] = tensor
    image = (rng.random((2, 64, 48, 3), np.float32) - mean) / std
    with torch.no_grad():
        wanted = peer.resnet(state, config, to_torch(image))
    errors = [error(a, to_core(b)) for a, b in zip(network.run(image), wanted, strict=True)]
    yield Row(name, "8 channels, 64 x 48", "features of stem, layer1 to layer4, batch norms folded", max(errors), PYTORCH)


# ---- CLIP's text transformer ------------------------------------------------------------------------------

TEXT = {"vocab_size": 99, "width": 32, "n_layers": 3, "num_heads": 4, "dim_feedforward": 48}
TOKENS = 77


def text_network(config: dict, n: int) -> tuple[_core.Network, _core.Params, np.ndarray]:
    """A network with random weights, and ids [n, TOKENS]: of the empty prompt, then random ones."""
    params, rng = _core.Params(), np.random.default_rng(2)
    network = _core.Network(params, "clip_text", config, n, (TOKENS, 1))
    params.allocate(0)
    randomize(params, rng)
    ids = rng.integers(config["vocab_size"], size=(n, TOKENS)).astype(np.float32)
    ids[0] = empty_prompt(config["vocab_size"], TOKENS)
    return network, params, ids


def text(theirs: Callable[[dict, _core.Params, torch.Tensor], torch.Tensor], package: str) -> Iterator[Row]:
    network, params, ids = text_network(TEXT, 3)
    with torch.no_grad():
        wanted = theirs(TEXT, params, torch.from_numpy(ids).long())
    what = f"3 layers, width 32, {TOKENS} tokens"
    yield Row("CLIP text transformer", what, "last hidden state", error(network.run(ids)[0], to_core(wanted)), package)


def text_in_torch(config: dict, params: _core.Params, ids: torch.Tensor) -> torch.Tensor:
    return peer.clip_text(peer.from_core(dict_of(params)), config, ids)


def text_in_transformers(config: dict, params: _core.Params, ids: torch.Tensor) -> torch.Tensor:
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["width"],
            intermediate_size=config["dim_feedforward"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=config["num_heads"],
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=config["vocab_size"] - 2,
            eos_token_id=config["vocab_size"] - 1,
        )
    )
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    state = {prefix + name.removeprefix("text_model."): to_torch(value) for name, value in dict_of(params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if not name.endswith("position_ids")]
    return model.eval()(ids).last_hidden_state


CASES = (
    Case(lambda: text(text_in_torch, PYTORCH), "CLIP text"),
    Case(lambda: text(text_in_transformers, against("transformers")), "CLIP text, transformers", ("transformers",)),
    *(Case(lambda name=name: resnet(name), name) for name in RESNETS),
)


# ---- table ------------------------------------------------------------------------------------------------


def markdown(rows: list[Row], skipped: list[str]) -> str:
    lines = [
        "# Parity",
        "The core's models beside others' code, every weight random. Errors are relative, by norm; of several outputs, and of",
        "all parameters' gradients, the largest. Both sides compute in float32.",
        "",
        "    python benchmarks/parity.py --markdown docs/PARITY.md",
        "",
        "| model | configuration | what | largest relative error | against |",
        "|---|---|---|---|---|",
        *(f"| {r.model} | {r.config} | {r.what} | {r.error:.1e} | {r.against} |" for r in rows),
    ]
    lines += [f"\nNot run: {', '.join(skipped)}."] if skipped else []
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--markdown", help="write the table here")
    a = parser.parse_args(argv)
    rows, skipped = [], []
    for case in CASES:
        if case.missing:
            skipped.append(f"{case.name} ({', '.join(case.missing)} is not installed)")
            continue
        for row in case.compare():
            rows.append(row)
            print(f"{row.error:.1e}  {row.model}, {row.config}: {row.what}; {row.against}", flush=True)
    if a.markdown:
        write_atomically(a.markdown, markdown(rows, skipped).encode())
    if a.json:
        write_atomically(a.json, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
    return int(any(row.error >= BOUND for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
