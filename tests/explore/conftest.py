"""Networks with hills as if trained, and a picture with two labelled people."""

from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import SMOKE

DOTS = {5: (90, 70), 6: (60, 72), 9: (120, 110), 16: (70, 160)}  # keypoint -> image px


@torch.no_grad()
def make_network(seed: int, keypoints: int) -> tuple[HRNet, ModelCard]:
    torch.manual_seed(seed)
    model = HRNet(num_keypoints=keypoints, **asdict(SMOKE.network)).eval()
    model.final_layer.weight *= 0.9 / model(torch.randn(1, 3, 96, 64)).max()
    card = ModelCard(input_hw=(96, 64), run=f"run{seed}", decoder="soft_argmax" if seed else "quarter_offset")
    return model, card if keypoints == 17 else replace(card, skeleton=AIC14)


@pytest.fixture(scope="session")
def networks() -> dict[str, tuple[HRNet, ModelCard]]:
    return {"one": make_network(0, 17), "two": make_network(1, 17), "fourteen": make_network(2, 14)}


@pytest.fixture
def table(tmp_path) -> PersonTable:
    """Two boxes about the same keypoints, soft white dots on black."""
    image = np.zeros((200, 180, 3), np.float32)
    y, x = np.mgrid[:200, :180]
    keypoints = np.zeros((2, 17, 3), np.float32)
    for k, (px, py) in DOTS.items():
        image += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18.0)[..., None]
        keypoints[:, k] = px, py, 2
    cv2.imwrite(str(tmp_path / "dots.png"), image.clip(0, 255).astype(np.uint8))
    return PersonTable(
        *("dots", COCO17, tmp_path, np.array([b"dots.png"]), np.array([7]), np.array([[200, 180]], np.int32)),
        *(np.zeros(2, np.int32), np.array([1, 2]), np.array([[40.0, 50, 100, 130], [50, 55, 80, 120]])),
        *(np.ones(2), np.array([13000.0, 13000.0]), keypoints, {}),
    )
