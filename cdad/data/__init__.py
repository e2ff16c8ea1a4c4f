"""Images and data sets: reading, perturbing, batching, and synthetic products."""

from __future__ import annotations

from .ahead import ahead
from .datasets import LAYOUTS, list_classes, open_dataset, read_sample
from .images import check_mask, load_images, read_image, read_mask, resize_image, resize_mask
from .light import relight
from .loader import Batch, MixedBatches, TrainingBatches, read_pixels
from .perturb import perturb, perturbation_rng
from .records import IMAGE_SUFFIXES, ClassData, Dataset, Sample, check_classes, spread
from .synthetic import PRODUCTS, render, write_dataset

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "PRODUCTS",
    "Batch",
    "ClassData",
    "Dataset",
    "MixedBatches",
    "Sample",
    "TrainingBatches",
    "ahead",
    "check_classes",
    "check_mask",
    "list_classes",
    "load_images",
    "open_dataset",
    "perturb",
    "perturbation_rng",
    "read_image",
    "read_mask",
    "read_pixels",
    "read_sample",
    "relight",
    "render",
    "resize_image",
    "resize_mask",
    "spread",
    "write_dataset",
]
