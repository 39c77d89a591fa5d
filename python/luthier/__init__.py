"""Luthier: classify photographs with features of a pretrained ResNet-50.

    import luthier

    features = luthier.Extractor(precision="auto")(["harp.jpg", "drum.jpg"])   # float32 [2, 2048]
    result = luthier.pipeline("photos")                                         # a folder of images for each class
    luthier.Predictor(result.model)(["new.jpg"])

Everything is what the command ``luthier`` does, to the bit, with the same settings and in the same words.
"""

from typing import TYPE_CHECKING

from luthier import _libtorch as _libtorch

_libtorch.load()

from luthier._extractor import Extractor, UnreadableImageError, UnreadableImageWarning
from luthier._images import Image
from luthier._pipeline import PipelineResult, pipeline
from luthier._predictor import Prediction, Predictor
from luthier.luthier_native import Error

__all__ = [
    "Error",
    "Extractor",
    "Image",
    "PipelineResult",
    "Prediction",
    "Predictor",
    "UnreadableImageError",
    "UnreadableImageWarning",
    "pipeline",
]


if TYPE_CHECKING:
    from luthier._embed import Embed as Embed
else:

    def __getattr__(name: str) -> object:
        # scikit-learn takes a second to import, and who only extracts does not need it.
        if name == "Embed":
            from luthier._embed import Embed

            return Embed
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
