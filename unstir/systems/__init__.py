"""Published systems as compositions of the rooms, one file each, every one with a claim that can be measured again.

To add a system with the id `some-name`:

1. write `unstir/systems/some_name.py` with `reproduce(out: Path, device: str, large: bool) -> Result`;
2. add its row to `index.py`.

`unstir systems` lists the rows without importing the files; `unstir reproduce ID` runs one.
"""

from .index import SYSTEMS
from .protocol import Claim, Result, System, at_least, at_most, find, reproduce, summary

__all__ = ["SYSTEMS", "Claim", "Result", "System", "at_least", "at_most", "find", "reproduce", "summary"]
