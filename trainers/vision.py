"""The one place through which torchvision is imported.

Beside a torch without its CUDA libraries, torchvision's compiled operators do not load, and then the import itself
fails: "operator torchvision::nms does not exist" (pytorch/vision#9077, #9085). Declaring the two operators that the
import needs makes datasets, models and transforms work; calling nms itself still raises, as nothing implements it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import warnings

import torch

__all__ = ["datasets", "models", "transforms"]


def _compiled_operators_load() -> bool:
    """Whether torchvision's compiled operators can be loaded into this torch; loads them if so."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # then the import below raises the error that names what is missing
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    finder = importlib.machinery.FileFinder(spec.submodule_search_locations[0], loader)
    extension = finder.find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]
    return library


# A declaration lasts as long as its Library object.
_declared = None if "torchvision" in sys.modules or _compiled_operators_load() else _declare_operators()

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    from torchvision import datasets, models
    from torchvision.transforms import v2 as transforms
