"""The official HRNet code in this process, from a checkout, with stand-ins for what it asks for.

It was written for numpy 1 and calls a compiled NMS of boxes, which poses do not need. What it does on a GPU
alone (`.cuda()` in its loops) is spelled out here with its own functions, in its own order.
"""

import contextlib
import copy
import io
import json
import random
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from hrnetpp_lib.errors import HrnetppError

COMMIT = "6f69e4676ad8d43d0d61b64b1b9726f0c369e7b1"  # what the shims were made for, and the ratios published
REMEDY = "give a checkout of github.com/leoxiaobin/deep-high-resolution-net.pytorch"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Node(dict):
    """yacs' CfgNode, as far as it is used: nested, by attribute or by key."""

    def __init__(self, content: dict | None = None, new_allowed: bool = True):
        super().__init__({k: Node(v) if isinstance(v, dict) else v for k, v in (content or {}).items()})

    def __getattr__(self, name: str) -> object:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    __setattr__ = dict.__setitem__

    def merge(self, other: dict) -> None:
        """Other values for some of the keys."""
        for key, value in other.items():
            if isinstance(value, dict):
                self.setdefault(key, Node()).merge(value)
            else:
                self[key] = value


def stand_in() -> None:
    """What the official code imports or calls and this environment has not."""
    for name, content in {
        "yacs": {},
        "yacs.config": {"CfgNode": Node},
        "json_tricks": {"load": json.load, "dump": json.dump},
        "nms.cpu_nms": {"cpu_nms": None},
        "nms.gpu_nms": {"gpu_nms": None},
    }.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    np.float, np.int = float, int


def to_network_input(image: np.ndarray) -> Tensor:
    """What its transforms, ToTensor and Normalize, do to a crop."""
    scaled = torch.from_numpy(image.transpose(2, 0, 1)).contiguous().float().div(255).clone()
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return scaled.sub_(mean).div_(std)


class Official:
    """The modules of a checkout, and its loops without a GPU.

    Raises: HrnetppError if the folder is no such checkout.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        if not (self.folder / "lib" / "models" / "pose_hrnet.py").is_file():
            raise HrnetppError(f"{folder}: lib/models/pose_hrnet.py is not there; {REMEDY}")
        git = ["git", "-C", str(self.folder), "rev-parse", "HEAD"]
        self.commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
        if self.commit != COMMIT:
            print(f"warning: {folder} is commit {self.commit[:12]}, not {COMMIT[:12]}", flush=True)
        stand_in()
        sys.path.insert(0, str(self.folder / "lib"))
        with warnings.catch_warnings(action="ignore"):  # its syntax is that of an older Python
            import config
            import core.inference
            import core.loss
            import dataset
            import models
            import nms.nms
            import utils.transforms
        self.defaults, self.inference, self.loss = config.cfg, core.inference, core.loss
        self.datasets, self.models, self.nms, self.transforms = dataset, models, nms.nms, utils.transforms

    def config(self, name: str, **changes: dict) -> Node:
        """Of experiments/coco/hrnet, with some values changed, section by section."""
        path = self.folder / "experiments" / "coco" / "hrnet" / f"{name}_adam_lr1e-3.yaml"
        config = Node(copy.deepcopy(dict(self.defaults)))
        config.merge(yaml.safe_load(path.read_text()))
        config.merge(changes)
        return config

    def network(self, config: Node, weights: dict[str, Tensor]) -> torch.nn.Module:
        """Its network with our weights, whose names are the same."""
        model = self.models.pose_hrnet.get_pose_net(config, is_train=False)
        model.load_state_dict(weights, strict=True)
        return model.eval()

    def dataset(self, config: Node, root: Path, split: str, train: bool, transform=to_network_input):
        """Its COCO dataset; files lie in root/annotations and root/images/<split>."""
        random.seed(0)
        np.random.seed(0)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports what it loads
            return self.datasets.coco(config, str(root), split, train, transform)

    @torch.no_grad()
    def predict(self, config: Node, model: torch.nn.Module, dataset, boxes: int) -> np.ndarray:
        """(N, K, 2) keypoints of the first N boxes: the loop of its `validate`, without loss and accuracy."""
        found, first = [], torch.utils.data.Subset(dataset, range(boxes))
        for images, _, _, meta in torch.utils.data.DataLoader(first, config.TEST.BATCH_SIZE_PER_GPU):
            output, mirrored = model(images), model(images.flip(3)).numpy()
            centers, scales = meta["center"].numpy(), meta["scale"].numpy()
            found.append(self.postprocess(config, output, mirrored, centers, scales))
        return np.concatenate(found)

    def postprocess(
        self, config: Node, output: Tensor, mirrored: np.ndarray, centers: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        """Flip back, shift, average, decode, back to the image; as there, `mirrored` is written into."""
        pairs = [[i, i + 1] for i in range(1, 17, 2)]
        flipped = torch.from_numpy(self.transforms.flip_back(mirrored, pairs).copy())
        flipped[:, :, :, 1:] = flipped.clone()[:, :, :, 0:-1]
        averaged = ((output + flipped) * 0.5).clone().numpy()
        return self.inference.get_final_preds(config, averaged, centers, scales)[0]

    def train_step(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: tuple) -> float:
        """One turn of the loop of its `train`, without accuracy and what it writes and draws."""
        images, target, weight = batch
        loss = self.loss.JointsMSELoss(use_target_weight=True)(model(images), target, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
