"""Layouts: the tensors of a part of a file as the core's parameters, each read when it is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from ..errors import FormatError
from .batch_norm import folded
from .families import FAMILIES, Part
from .loading import Piece
from .tensor_file import TensorFile, TensorInfo

# What the core's names of a family begin with.
SCOPES = {
    "unet": "unet.",
    "amn": "amn.",
    "controlnet": "control.",
    "vae": "",
    "clip_text": "",
    "resnet": "",
    "efficientnet_lite0": "",
    "tiny_encoder": "encoder.",
    "tiny_decoder": "decoder.",
}
# A masked network's packed projection is three weights of the core, whose q and k read other features than its v.
_PACKED = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")
# Products over channels that the originals keep as 1x1 convolutions and diffusers as matrices.
_ONE_BY_ONE = re.compile(r".*\.(mid\.attn_1\.(q|k|v|proj_out)|proj_(in|out))\.weight")


def part_pieces(part: Part, file: TensorFile, *, ema: bool = False) -> dict[str, Piece]:
    """The parameters that a part gives, by the core's names: float, conv weights [O,R,S,C].

    ``ema``: the moving averages instead of the weights. FormatError: there are none, or only of some tensors; tensors of
    integers; packed or normalised weights whose parts do not fit each other.
    """
    names = part.ema if ema else part.names
    if ema and names.keys() != part.names.keys():
        have = f"{len(names)} of {len(part.names)} tensors have" if names else "no tensor has"
        raise FormatError(f"{FAMILIES[part.family].title}: {have} a moving average (EMA) in the file", file.path)
    whole = [name for name in names.values() if file.tensors[name].dtype[0] not in "FB" or file.tensors[name].dtype == "BOOL"]
    if whole:
        raise FormatError(f"{len(whole)} tensors hold no floating-point numbers: {', '.join(whole[:8])}", file.path)
    if part.family in _FOLDED:
        return _folded(part.family, names, file)
    pieces: dict[str, Piece] = {}
    scope = SCOPES[part.family]
    for name, source in names.items():
        info = file.tensors[source]
        packed = _PACKED.fullmatch(name) if part.family == "amn" else None
        if packed is None:
            pieces[scope + name] = _plain(name, source, info, file)
        elif info.shape[0] % 3:
            raise FormatError(f"{source} has {info.shape[0]} rows, expected a multiple of 3: q, k and v", file.path)
        else:
            rows = info.shape[0] // 3
            for i, letter in enumerate("qkv"):
                piece = Piece((rows, *info.shape[1:]), _rows(file, source, i * rows, rows))
                pieces[f"{scope}{packed[1]}{letter}_proj.{packed[2]}"] = piece
    return pieces


def _plain(name: str, source: str, info: TensorInfo, file: TensorFile) -> Piece:
    shape = matrix_as_convolution(name, info.shape)
    if len(shape) == 4:
        return Piece((shape[0], *shape[2:], shape[1]), lambda: file.read(source).reshape(shape).transpose(0, 2, 3, 1))
    return Piece(shape, lambda: file.read(source))


def matrix_as_convolution(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[O,I] of a product that the originals keep as a 1x1 convolution -> [O,I,1,1]; any other shape as it is."""
    return (*shape, 1, 1) if len(shape) == 2 and _ONE_BY_ONE.fullmatch(name) else shape


def _rows(file: TensorFile, source: str, begin: int, rows: int) -> Callable[[], np.ndarray]:
    return lambda: file.read(source)[begin : begin + rows]


def _resnet_layer(name: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"(.*?)(?:conv(\d)|downsample\.0)\.weight", name)
    if not match:
        return None
    return f"{match[1]}bn{match[2]}" if match[2] else f"{match[1]}downsample.1", name.removesuffix(".weight")


def _lite0_layer(name: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.weight", name)
    if not match:
        return ("_bn0", "stem") if name == "_conv_stem.weight" else None
    norm = ("expand", "depthwise", "project").index(match[2])
    return f"_blocks.{match[1]}._bn{norm}", f"blocks.{match[1]}.{match[2]}"


# Of families whose batch norms are folded: their eps, and (norm, the core's layer) of a convolution's weight, None of others.
_FOLDED = {"resnet": (1e-5, _resnet_layer), "efficientnet_lite0": (1e-3, _lite0_layer)}


def _folded(family: str, names: Mapping[str, str], file: TensorFile) -> dict[str, Piece]:
    """Every convolution with the batch norm behind it: weight * g / sqrt(v + eps), and the bias b - m g / sqrt(v + eps)."""
    eps, layer_of = _FOLDED[family]
    pieces: dict[str, Piece] = {}
    used: set[str] = set()
    for name in names:
        found = layer_of(name)
        if not found:
            continue
        norm, layer = found
        parts = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        shape = file.tensors[names[name]].shape
        wrong = [part for part in parts if part not in names or file.tensors[names[part]].shape != shape[:1]]
        if wrong or len(shape) != 4:
            raise FormatError(f"{name} is no convolution with a batch norm: {', '.join(wrong) or list(shape)}", file.path)
        used.update(parts, (name,))

        def both(name: str = name, norm: str = norm, wanted: tuple[str, ...] = (name, *parts)):
            raw = {part: file.read(names[part]) for part in wanted}
            return folded(raw, name.removesuffix(".weight"), norm, eps, what=FAMILIES[family].title, path=file.path)

        pieces[f"{layer}.weight"] = _convolution(shape, both, depthwise=layer.endswith(".depthwise") and shape[1] == 1)
        pieces[f"{layer}.bias"] = Piece(shape[:1], lambda both=both: both()[1])
    for name in names.keys() - used:  # unexpected, as a strict load will tell
        pieces.setdefault(name, _plain(name, names[name], file.tensors[names[name]], file))
    return pieces


def _convolution(shape: tuple[int, ...], both: Callable[[], tuple[np.ndarray, np.ndarray]], depthwise: bool) -> Piece:
    if depthwise:  # [C,1,R,S] -> [R,S,C]
        return Piece((*shape[2:], shape[0]), lambda: both()[0][:, 0].transpose(1, 2, 0))
    return Piece((shape[0], *shape[2:], shape[1]), lambda: both()[0].transpose(0, 2, 3, 1))
