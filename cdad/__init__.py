"""cdad: continual anomaly detection with one latent-diffusion model.

>>> import cdad
>>> model = cdad.ContinualModel("small")                      # doctest: +SKIP
>>> model.fit_task({"bottle": normal_image_paths})            # doctest: +SKIP
>>> model.predict(test_image_paths).scores                    # doctest: +SKIP
"""

from importlib.metadata import PackageNotFoundError, version

from ._core import build_info, get_device, get_threads, set_device, set_threads
from .config import PRESETS, Config, preset
from .data import open_dataset
from .errors import CheckpointError, DataError, FormatError, ImageError, LimitError, TrainingError
from .evaluation import evaluate
from .model import ContinualModel, Prediction
from .planning import Plan, plan
from .protocols import PROTOCOLS, Protocol, protocol
from .run import run_protocol

try:
    __version__ = version("cdad")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "CheckpointError",
    "Config",
    "ContinualModel",
    "DataError",
    "FormatError",
    "ImageError",
    "LimitError",
    "Plan",
    "Prediction",
    "Protocol",
    "TrainingError",
    "build_info",
    "evaluate",
    "get_device",
    "get_threads",
    "open_dataset",
    "plan",
    "preset",
    "protocol",
    "run_protocol",
    "set_device",
    "set_threads",
]
