"""Published weights by name, fetched with `huggingface_hub` (``pip install 'cdad[hub]'``). docs/WEIGHTS.md has the table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FormatError
from .collection import Collection


@dataclass(frozen=True)
class Published:
    """Files of a repository, and their licence. ``hashes``: SHA-256 by file, of those that are known."""

    repository: str
    files: tuple[str, ...]
    licence: str
    holds: tuple[str, ...]  # families
    hashes: Mapping[str, str] = field(default_factory=dict)


_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PUBLISHED = {
    "sd15": Published(
        _SD15, ("v1-5-pruned-emaonly.safetensors",), "CreativeML OpenRAIL-M", ("unet", "vae", "clip_text")
    ),
    "sd15-diffusers": Published(
        _SD15,
        (
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
        ),
        "CreativeML OpenRAIL-M",
        ("unet", "vae", "clip_text"),
    ),
    "sd-vae-ft-mse": Published("stabilityai/sd-vae-ft-mse", ("diffusion_pytorch_model.safetensors",), "MIT", ("vae",)),
    "clip-vit-l14": Published("openai/clip-vit-large-patch14", ("model.safetensors",), "MIT (OpenAI's CLIP)", ("clip_text",)),
    **{
        name: Published(f"timm/{name}.tv_in1k", ("model.safetensors",), "BSD-3-Clause", ("resnet",))
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2")
    },
}


def pull(name: str, folder: str | os.PathLike) -> list[Path]:
    """Fetch published weights into a folder; a fetch that was interrupted goes on where it stood. The files are then opened
    as any others, and have to hold the models that they are known for.

    ValueError: an unknown name; RuntimeError: huggingface_hub is not installed; OSError: the network or the disk;
    FormatError: not the file that is known by its hash, or not those models.
    """
    if name not in PUBLISHED:
        raise ValueError(f"there are no published weights {name!r}; known: {', '.join(PUBLISHED)}")
    published, folder = PUBLISHED[name], Path(folder)
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise RuntimeError(f"fetching weights wants huggingface_hub: pip install 'cdad[hub]' ({error})") from error
    paths = []
    for file in published.files:
        try:
            paths.append(Path(hf_hub_download(published.repository, file, local_dir=folder)))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise OSError(
                f"{published.repository}: {file} could not be fetched ({type(error).__name__}); is the network there, and "
                f"HF_HUB_OFFLINE not set? What was fetched stays in {folder}, and the same command goes on"
            ) from error
        _check_hash(paths[-1], published.hashes.get(file, ""))
    found = set()
    for path in paths:
        with Collection(path) as collection:
            found |= {part.family for part, _ in collection.parts}
    missing = set(published.holds) - found
    if missing:
        raise FormatError(f"what was fetched as {name} holds no {', '.join(sorted(missing))}", folder)
    return paths


def _check_hash(path: Path, wanted: str) -> None:
    if not wanted:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise FormatError(f"its SHA-256 is {found}, expected {wanted}", path)
