"""Rows measured in turn, round after round, so that a drift of the machine hits all of them alike."""

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

# How long a turn of a calibrated row lasts, about.
TURN_SECONDS = 1.0

# The thread pools of torch, ONNX Runtime, OpenVINO and Luthier spin for some milliseconds after their last work. Two of
# them awake at once would share the cores.
PAUSE_SECONDS = 0.1


class Unit(Enum):
    """How a turn is shown."""

    RATE = "images/s"
    SECONDS = "s/image"
    FIT = "s/fit"


@dataclass(frozen=True)
class Turn:
    """So many images, or fits, in so many seconds."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images, or fits, a second."""
        return self.images / self.seconds

    def show(self, unit: Unit) -> float:
        """The turn's figure in that unit."""
        return self.rate if unit is Unit.RATE else self.seconds / self.images


@dataclass(frozen=True)
class Row:
    """One contestant: how it takes a turn, and which rows of Luthier it is compared with.

    `against` has for each a label, which may be empty if there is but one, and its name in the same group.
    """

    name: str
    run: Callable[[], Turn]
    against: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What the rows of a group did, in their order: the turns by name, one for each round."""

    title: str
    unit: Unit
    turns: Mapping[str, list[Turn]]
    against: Mapping[str, Mapping[str, str]]

    def ratio(self, name: str, rival: str) -> float:
        """How many times faster the row `rival` is than the row `name`: the median of the rounds' ratios."""
        pairs = zip(self.turns[name], self.turns[rival], strict=True)
        return statistics.median(theirs.rate / own.rate for own, theirs in pairs)


@dataclass(frozen=True)
class Group:
    """Rows that are measured together and make up one table."""

    title: str
    rows: list[Row]
    unit: Unit = Unit.RATE

    def measure(self, rounds: int, seed: int = 0) -> Results:
        """Gives every row one turn a round, in an order that changes; a first round is not counted."""
        order = random.Random(seed)
        turns: dict[str, list[Turn]] = {row.name: [] for row in self.rows}
        for number in range(rounds + 1):
            for row in order.sample(self.rows, len(self.rows)):
                time.sleep(PAUSE_SECONDS)
                turn = row.run()
                if number > 0:
                    turns[row.name].append(turn)
                stage = f"round {number}/{rounds}" if number > 0 else "warming up"
                say(f"{stage}: {row.name}: {turn.images} in {turn.seconds:.2f} s")
        return Results(self.title, self.unit, turns, {row.name: row.against for row in self.rows})


def timed(images: int, work: Callable[[], object]) -> Turn:
    """Does `work`, which handles so many `images`, once."""
    start = time.perf_counter()
    work()
    return Turn(images, time.perf_counter() - start)


def calibrated(run: Callable[[int], Turn]) -> Callable[[], Turn]:
    """A turn of about TURN_SECONDS of `run`, which takes a number of repetitions; warms it up on the way."""
    run(2)
    trial = run(2)
    repetitions = max(2, round(2 * TURN_SECONDS / trial.seconds))
    return lambda: run(repetitions)


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)
