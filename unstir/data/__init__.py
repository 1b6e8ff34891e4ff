"""Data to learn from: picture folders, arrays, bundled real data, pairs; single pictures and sounds. `load` finds out which."""

from .dataset import Dataset
from .load import BUNDLED, load
from .pairs import Pairs, load_pairs
from .picture import Picture, read_picture, write_picture
from .sound import read_wav, resample, write_wav
from .spectrogram import Spectrogram

__all__ = [
    "BUNDLED",
    "Dataset",
    "Pairs",
    "Picture",
    "Spectrogram",
    "load",
    "load_pairs",
    "read_picture",
    "read_wav",
    "resample",
    "write_picture",
    "write_wav",
]
