"""The table of systems, in alphabetical order of their ids. Data only: the files are imported when one is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A published method: its id on the command line, its name, its paper's title and year, one line on what it does."""

    id: str
    title: str
    paper: str
    summary: str

    @property
    def module(self) -> str:
        """The file that holds it: `unstir.systems.some_name` for the id `some-name`."""
        return f"unstir.systems.{self.id.replace('-', '_')}"


SYSTEMS: dict[str, System] = {system.id: system for system in ()}
