"""A detector of persons, of the transformers library, and the COCO file of boxes that it writes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hrnetpp_lib.errors import HrnetppError

Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) xywh in image px, float64, and scores (N,)
_SURE = 0.3
_IMAGES_A_BATCH = {"cpu": 4, "cuda": 32}


@dataclass(frozen=True)
class Detector:
    """A network that `open_detector` made ready."""

    name: str
    processor: object
    network: torch.nn.Module
    label: int  # of persons
    device: str

    @property
    def at_once(self) -> int:
        """How many images are best looked at together."""
        return _IMAGES_A_BATCH.get(torch.device(self.device).type, 4)

    @torch.no_grad()
    def find(self, images: Sequence[np.ndarray], threshold: float = _SURE) -> list[Boxes]:
        """Persons in each (h, w, 3) uint8 RGB image: boxes within it, best first, scored above a threshold.

        The images go through the network in one batch, whatever their sizes.
        """
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        sizes = [image.shape[:2] for image in images]
        found = self.processor.post_process_object_detection(
            self.network(**inputs), threshold=threshold, target_sizes=sizes
        )
        return [self._persons(one, size) for one, size in zip(found, sizes, strict=True)]

    def _persons(self, found: dict[str, torch.Tensor], hw: tuple[int, int]) -> Boxes:
        scores, corners = (found[key].double().cpu().numpy() for key in ("scores", "boxes"))
        corners = corners.reshape(-1, 2, 2).clip(0, hw[::-1])
        start, end = corners[:, 0], corners[:, 1]
        persons = np.flatnonzero((found["labels"].cpu().numpy() == self.label) & (end > start + 0.01).all(1))
        persons = persons[np.argsort(-scores[persons], kind="stable")]
        return np.hstack([start, end - start])[persons], scores[persons]


def open_detector(model: str, device: str = "cpu") -> Detector:
    """A COCO-trained D-FINE or RT-DETRv2 of the transformers library: a name on its hub, or a local folder.

    Raises: HrnetppError if it cannot be loaded or knows no person. Reference: Peng et al., arXiv 2410.13842.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForObjectDetection.from_pretrained(model).to(device).eval()
    except (OSError, ValueError, ImportError) as error:
        remedy = "pip install 'hrnetpp-lib[detect]'; check the name and the network, or give a local folder"
        raise HrnetppError(f"detector {model}: cannot be loaded ({error}); {remedy}") from error
    labels = [int(label) for label, name in network.config.id2label.items() if name == "person"]
    if len(labels) != 1:
        raise HrnetppError(f"detector {model}: no label is named 'person'; choose a model trained on COCO")
    return Detector(model, processor, network, labels[0], device)
