"""Data to learn from: picture folders, arrays, bundled real data, pairs; single pictures and sounds. `load` finds out which."""

from .buckets import Buckets, bucket_sizes, load_buckets, parts_of
from .dataset import Dataset
from .fields import Fields
from .load import BUNDLED, load
from .pairs import Pairs, load_pairs
from .picture import Picture, read_picture, write_picture
from .sound import read_wav, resample, write_wav
from .spectrogram import Spectrogram

__all__ = [
    "BUNDLED",
    "Buckets",
    "Dataset",
    "Fields",
    "Pairs",
    "Picture",
    "Spectrogram",
    "bucket_sizes",
    "load",
    "load_buckets",
    "load_pairs",
    "parts_of",
    "read_picture",
    "read_wav",
    "resample",
    "write_picture",
    "write_wav",
]
