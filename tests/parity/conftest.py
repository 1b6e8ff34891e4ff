"""The parity tests share their table with `benchmarks/parity.py`, which lies outside the package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
