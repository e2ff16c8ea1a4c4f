"""What a weight file is, and the same weights under the originals' names in one safetensors file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..bfloat16 import to_bfloat16
from ..errors import FormatError, LimitError
from ..results import format_table
from .collection import Collection
from .families import FAMILIES, Part
from .pieces import matrix_as_convolution, part_pieces
from .safetensors_file import write_safetensors
from .tensor_file import DTYPES, TensorFile, TensorInfo

_SHOWN = 3  # tensors of each part whose mapping the text shows


def describe(collection: Collection) -> dict[str, Any]:
    """Plain values: the files (format, tensors, parameters, precision), the models in them with each parameter of the core
    beside the tensor that it comes from, and the tensors that belong to none."""
    return {
        "path": os.fspath(collection.path),
        "files": [
            {"file": os.fspath(file.path), "format": file.kind, **_amounts(file.tensors.values())} for file in collection.files
        ],
        "models": [_describe_part(part, file) for part, file in collection.parts],
        "ignored": list(collection.ignored),
        "unknown": list(collection.unknown),
    }


def _amounts(infos: Iterable[TensorInfo]) -> dict[str, Any]:
    infos = list(infos)
    types = Counter(info.dtype for info in infos)
    return {"tensors": len(infos), "parameters": sum(info.count for info in infos), "precision": dict(types.most_common())}


def _describe_part(part: Part, file: TensorFile) -> dict[str, Any]:
    try:
        pieces, problem = part_pieces(part, file), None
    except FormatError as error:
        pieces, problem = {}, error.reason
    sources = {name: source for name, source in part.names.items()}
    return {
        "family": part.family,
        "title": FAMILIES[part.family].title,
        "kind": _kind(part, file),
        "naming": part.naming,
        "prefix": part.prefix,
        **_amounts(file.tensors[source] for source in part.names.values()),
        "ema": len(part.ema) == len(part.names),
        "ignored": list(part.ignored),
        "problem": problem,
        "tensors_of": {
            name: {"from": source, "shape": list(file.tensors[source].shape), "type": file.tensors[source].dtype}
            for name, source in sources.items()
        },
        "parameters_of": {name: list(piece.shape) for name, piece in pieces.items()},
    }


def _kind(part: Part, file: TensorFile) -> str:
    """What the shapes tell of a model: its size and variant."""

    def shape(name: str) -> tuple[int, ...]:
        return file.tensors[part.names[name]].shape if name in part.names else ()

    def count(before: str) -> int:
        return len({name.split(".")[before.count(".")] for name in part.names if name.startswith(before)})

    if part.family in ("unet", "controlnet"):
        stem = shape("input_blocks.0.0.weight")
        context = next((shape(name)[-1] for name in part.names if name.endswith("attn2.to_k.weight")), 0)
        version = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(context, f"context {context}")
        return f"{version}, {stem[0]} channels, {stem[1]} inputs" if len(stem) == 4 else version
    if part.family == "vae":
        return f"{(shape('decoder.conv_in.weight') or (0, 0))[1]} latent channels, f{2 ** (count('encoder.down.') - 1)}"
    if part.family == "clip_text":
        width = (shape("text_model.embeddings.token_embedding.weight") or (0, 0))[-1]
        return f"{count('text_model.encoder.layers.')} layers of {width}"
    if part.family == "resnet":
        blocks = tuple(count(f"layer{i}.") for i in range(1, 5))
        bottleneck, wide = "layer1.0.conv3.weight" in part.names, (shape("layer1.0.conv2.weight") or (0,))[0] == 128
        known = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet50" if bottleneck else "resnet34", (3, 4, 23, 3): "resnet101"}
        name = known.get(blocks, f"blocks {blocks}")
        return f"wide_{name}_2" if bottleneck and wide else name
    if part.family == "efficientnet_lite0":
        return f"{count('_blocks.')} blocks"
    if part.family.startswith("tiny_"):
        first, last = ("0", "14") if part.family == "tiny_encoder" else ("1", "19")
        latent = shape(f"{last}.weight")[:1] if part.family == "tiny_encoder" else shape(f"{first}.weight")[1:2]
        pooled = ", pooled branches" if any(".pool." in name for name in part.names) else ""
        return f"{(shape(f'{first}.bias') or (0,))[0]} channels, {(latent or (0,))[0]} latent channels, f8{pooled}"
    return f"{count('encoder.layers.')} layers"


def format_description(found: dict[str, Any]) -> str:
    """`describe`'s values as text."""
    lines = [
        f"{file['file']}: {file['format']}, {file['tensors']} tensors, {file['parameters'] / 1e6:.2f} M values "
        f"({_precision(file)})"
        for file in found["files"]
    ]
    rows = [
        {
            "model": f"{part['title']} ({part['kind']})",
            "names": part["naming"],
            "begin with": part["prefix"] or "-",
            "tensors": part["tensors"],
            "M parameters": part["parameters"] / 1e6,
            "precision": _precision(part),
            "EMA": "yes" if part["ema"] else "no",
        }
        for part in found["models"]
    ]
    lines.append("\n" + format_table(rows, digits=2) if rows else "no model that is known")
    for part in found["models"]:
        lines.append(f"\n{part['title']}:")
        if part["problem"]:
            lines.append(f"  cannot be loaded: {part['problem']}")
        shown = list(part["tensors_of"].items())
        for name, tensor in shown[:_SHOWN]:
            lines.append(f"  {tensor['from']} {tensor['shape']} {tensor['type']} -> {name}")
        if len(shown) > _SHOWN:
            lines.append(f"  ... {len(shown) - _SHOWN} more (--json shows all)")
        if part["ignored"]:
            lines.append(f"  not used: {_some(part['ignored'])}")
    for title, names in (("not used", found["ignored"]), ("unknown", found["unknown"])):
        if names:
            lines.append(f"{title}: {_some(names)}")
    return "\n".join(lines)


def _precision(amounts: dict[str, Any]) -> str:
    return ", ".join(f"{n} {name}" if len(amounts["precision"]) > 1 else name for name, n in amounts["precision"].items())


def _some(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def convert(collection: Collection, out: str | os.PathLike, *, ema: bool = False) -> int:
    """Write the models of a collection to one safetensors file under the originals' names, each tensor in the type that it
    has; the number of tensors. ``ema``: the U-Net's moving averages instead of its weights.

    FormatError: there is no model, tensors that nobody knows, or a name twice; LimitError: tensors that share their values
    would make the file much larger than what it is made of. OSError leaves the old file as it was.
    """
    if not collection.parts or collection.unknown:
        what = _some(collection.unknown) if collection.unknown else "no model"
        raise FormatError(f"holds {what}: only known models are converted", collection.path)
    rooted = any(part.family in ("unet", "controlnet", "amn") for part, _ in collection.parts)
    tensors: dict[str, tuple[TensorInfo, Callable[[], np.ndarray]]] = {}
    for part, file in collection.parts:
        part_pieces(part, file, ema=ema and part.family == "unet")  # its checks
        names = part.ema if ema and part.family == "unet" else part.names
        for name, source in names.items():
            target = (FAMILIES[part.family].root if rooted else "") + name
            if target in tensors:
                raise FormatError(f"two tensors are named {target}", collection.path)
            tensors[target] = _converted(part, name, source, file)
    size = sum(info.bytes for info, _ in tensors.values())
    stated = sum(os.path.getsize(path) for path in _paths(collection))
    if size > 2 * stated + (1 << 20):
        raise LimitError(f"tensors that share values: {stated} bytes would become {size}", collection.path)
    write_safetensors(out, tensors, {"format": "pt"})
    return len(tensors)


def _converted(part: Part, name: str, source: str, file: TensorFile) -> tuple[TensorInfo, Callable[[], np.ndarray]]:
    info = file.tensors[source]
    shape = matrix_as_convolution(name, info.shape) if part.family == "vae" else info.shape

    def values() -> np.ndarray:
        array = file.read(source).reshape(shape)
        return to_bfloat16(array) if info.dtype == "BF16" else array.astype(DTYPES[info.dtype], copy=False)

    return TensorInfo(info.dtype, shape), values


def _paths(collection: Collection) -> list[os.PathLike]:
    return [path for file in collection.files for path in file.paths]
