"""cdad: continual anomaly detection with one latent-diffusion model.

>>> import cdad
>>> model = cdad.ContinualModel("small")                      # doctest: +SKIP
>>> model.fit_task({"bottle": normal_image_paths})            # doctest: +SKIP
>>> model.predict(test_image_paths).scores                    # doctest: +SKIP
"""

from ._core import (
    DeviceArray,
    build_info,
    device_memory,
    get_device,
    get_threads,
    limit_device_memory,
    set_device,
    set_threads,
)
from .config import PRESETS, Config, preset
from .data import open_dataset
from .errors import CheckpointError, DataError, FormatError, ImageError, LimitError, TrainingError
from .evaluation import evaluate
from .model import ContinualModel
from .parallel import DataParallel
from .planning import Plan, plan
from .prediction import Prediction
from .protocols import PROTOCOLS, Protocol, protocol
from .run import run_protocol
from .version import __version__

__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "CheckpointError",
    "Config",
    "ContinualModel",
    "DataError",
    "DataParallel",
    "DeviceArray",
    "FormatError",
    "ImageError",
    "LimitError",
    "Plan",
    "Prediction",
    "Protocol",
    "TrainingError",
    "__version__",
    "build_info",
    "device_memory",
    "evaluate",
    "get_device",
    "get_threads",
    "limit_device_memory",
    "open_dataset",
    "plan",
    "preset",
    "protocol",
    "run_protocol",
    "set_device",
    "set_threads",
]
