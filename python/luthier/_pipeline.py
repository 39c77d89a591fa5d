"""Folders of images → a trained model and its evaluation."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import luthier_native

if TYPE_CHECKING:
    import pandas as pd

# Options that are there or not.
WITHOUT_VALUE = frozenset({"dry_run", "json"})

# Ctrl-C ends whatever pipeline runs.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class PipelineResult:
    """What a run of the pipeline gave."""

    summary: dict[str, Any] = field(repr=False)
    """All that ``luthier pipeline --json`` prints."""
    test: dict[str, float] | None
    """``accuracy``, ``macro_f1`` and ``n`` of the test images; ``None`` if there are none."""
    held_out: dict[str, float] | None
    """The same of training images that cross-validation held out; ``None`` if C was given."""
    model: Path
    """The model, for :class:`Predictor`. Another run with the same ``out=`` replaces it."""
    report: Path
    """The page of the report."""
    features: Path
    """The folder of .npy files."""
    details: dict[str, Any] = field(repr=False)
    """All that ``report.json`` says, as its schema describes it."""

    def predictions(self) -> pd.DataFrame:
        """A row for each evaluated image: its file, its true and predicted class, and ``p(class)`` for each class."""
        import pandas as pd

        details = self.details
        names = [f"p({name})" for name in details["classes"]]
        rows = [
            {
                "file": one["file"],
                "true_class": one["true_class"],
                "predicted_class": one["predicted_class"],
                **dict(zip(names, one["probabilities"], strict=True)),
            }
            for one in details["predictions"]
        ]
        return pd.DataFrame(rows)

    def suspects(self) -> pd.DataFrame:
        """A row for each image whose label is probably wrong, the most suspicious first."""
        import pandas as pd

        columns = ["split", "file", "class", "suggested_class", "label_probability", "suggested_probability"]
        return pd.DataFrame(self.details["mislabelled"], columns=columns)

    def confusion(self) -> pd.DataFrame:
        """How many images of each true class (rows) were predicted to be of each class (columns)."""
        import pandas as pd

        details = self.details
        return pd.DataFrame(details["confusion"], index=details["classes"], columns=details["classes"])

    def _repr_html_(self) -> str:
        named = {"test": self.test, "held out": self.held_out}
        rows = (f"<tr><th>{name}</th>{_cells(figures)}</tr>" for name, figures in named.items() if figures)
        return f"<table><tr><th></th><th>accuracy</th><th>macro F1</th><th>images</th></tr>{''.join(rows)}</table>"


def _cells(figures: dict[str, float]) -> str:
    return f"<td>{figures['accuracy']:.4f}</td><td>{figures['macro_f1']:.4f}</td><td>{figures['n']}</td>"


def pipeline(data_dir: str | os.PathLike[str] | None = None, **settings: Any) -> PipelineResult:
    """Runs ``luthier pipeline``: only what a change affects is computed.

    Parameters
    ----------
    data_dir : path, optional
        A folder with a folder of images for each class; or ``train_dir=`` and ``test_dir=``.
    **settings
        The options of the command with ``_`` for ``-``: ``weights="…"``, ``variance=0.95``, ``c=1``, ``precision="auto"``,
        ``out="…"``, ``cache_dir="…"``. ``True`` sets an option without a value, ``None`` leaves it alone, and a list becomes
        values with commas. ``luthier.toml`` and ``LUTHIER_…`` variables count, as they do for the command.

    Raises
    ------
    luthier.Error
        In the words of the command.
    """
    named = {"data_dir": data_dir, **settings}
    arguments: list[str] = []
    for name, value in named.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, (bool, np.bool_)) and value:
            arguments.append(option)
        elif isinstance(value, (list, tuple)):
            values = [str(one) for one in value]
            for one in values:
                if "," in one:
                    places = "a file .luthierignore or a list in luthier.toml"
                    raise ValueError(f"{name}: expected values without commas, found {one!r}: write it into {places}")
            arguments.append(f"{option}={','.join(values)}")
        elif isinstance(value, (bool, np.bool_)):
            # An option that is false stands above a file that says otherwise; those without a value have no other way.
            arguments += [f"{option}=false"] if name not in WITHOUT_VALUE else []
        elif value is not None:
            arguments.append(f"{option}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    with ONE_AT_A_TIME:
        summary = json.loads(luthier_native.pipeline(arguments))
        outputs = {name: Path(path).absolute() for name, path in summary["outputs"].items()}
        details = outputs["report"].with_name("report.json").read_bytes().decode("utf-8")
    return PipelineResult(summary, summary["test"], summary["held_out"], details=json.loads(details), **outputs)
