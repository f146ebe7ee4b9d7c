"""HRNet++ for human pose estimation: network, soft-argmax, training stages and evaluation.

Importing the package loads no heavy library: the names below are fetched on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "HRNet": "model.hrnet",
    "create_model": "model.hrnet",
    "soft_argmax": "pose.softargmax",
    "predict": "app.photo",
    "COCO17": "pose.keypoints",
    "AIC14": "pose.keypoints",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(
            f"module 'hrnetpp_lib' has no attribute {name!r}; it offers {', '.join(__all__)}"
        )
    return getattr(import_module(f"hrnetpp_lib.{_HOME[name]}"), name)
