"""HRNet++ for human pose estimation. Importing it loads nothing heavy: names are fetched on first use."""

from importlib import import_module

_HOME = {"HRNet": "model.hrnet", "create_model": "model.hrnet", "soft_argmax": "pose.softargmax"}
_HOME |= {"predict": "app.photo", "COCO17": "pose.keypoints", "AIC14": "pose.keypoints"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        offer = f"it offers {', '.join(__all__)}"
        raise AttributeError(f"module 'hrnetpp_lib' has no attribute {name!r}; {offer}")
    return getattr(import_module(f"hrnetpp_lib.{_HOME[name]}"), name)
