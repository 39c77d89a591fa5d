"""Luthier's side: `luthier-compare`, which is asked for one turn a line.

A request is one line, its fields separated by tabs; main.rs says which there are. So is the answer: `IMAGES SECONDS`,
or `error MESSAGE`. What the first request of its kind loads and warms up is not in the seconds.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from measure import Turn
from problem import Problem


def environment() -> dict[str, str]:
    """The environment without settings of Luthier, which would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")}


class LuthierCompare:
    """A running `luthier-compare`."""

    def __init__(self, program: Path, folder: Path) -> None:
        """Starts `program` in `folder`, where no luthier.toml lies."""
        self._name = program.name
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(),
        )

    def __enter__(self) -> Self:
        """Itself, running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the program: it stops where its input does."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def ask(self, *fields: object) -> Turn:
        """Sends one request and waits for its answer."""
        request = "\t".join(map(str, fields))
        shown = " ".join(map(str, fields[:5]))
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Problem(f"{self._name}: {shown}: ended with status {self._process.wait()} and without an answer")
        match answer.rstrip("\n").split("\t"):
            case ["error", message]:
                raise Problem(f"{self._name}: {shown}: {message}")
            case [images, seconds]:
                return Turn(int(images), float(seconds))
            case _:
                raise Problem(f"{self._name}: {shown}: expected `IMAGES SECONDS`, found `{answer.strip()}`")
