"""Examples: where they come from, how they are augmented, and the processes that decode them.

Nothing here imports torch or ray: the loader processes import numpy and Pillow alone.
"""

from distbelief.data.dataset import Dataset, dataset_of, open_data
from distbelief.data.folder import ImageFolder, open_folder
from distbelief.data.images import UnreadableImage
from distbelief.data.loader import Batch, BatchLoader, BatchRequest, sequential_batches
from distbelief.data.normalize import normalization
from distbelief.data.permutation import epoch_permutation, example_rng
from distbelief.data.shapes import DrawnShapes
from distbelief.data.source import ImageSource, Input, RandomSource, Target
from distbelief.data.tars import TarShards, open_tars
from distbelief.data.torchdata import TorchDataset, source_of
from distbelief.data.transforms import EvalTransform, TrainTransform, Transform

__all__ = [
    "Batch",
    "BatchLoader",
    "BatchRequest",
    "Dataset",
    "DrawnShapes",
    "EvalTransform",
    "ImageFolder",
    "ImageSource",
    "Input",
    "RandomSource",
    "TarShards",
    "Target",
    "TorchDataset",
    "TrainTransform",
    "Transform",
    "UnreadableImage",
    "dataset_of",
    "epoch_permutation",
    "example_rng",
    "normalization",
    "open_data",
    "open_folder",
    "open_tars",
    "sequential_batches",
    "source_of",
]
