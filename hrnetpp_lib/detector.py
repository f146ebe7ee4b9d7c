"""Persons in a picture without boxes; whole datasets bring theirs (annotations.read_coco_detections)."""

import numpy as np
import torch

from hrnetpp_lib.errors import HrnetppError


class TransformersDetector:
    """A COCO-trained D-FINE or RT-DETRv2 of the transformers library (extra `detect`).

    Args:
        model: Name on the Hugging Face hub, or a local folder.
        score_threshold: Boxes that score less are left out; 0 keeps all, as evaluation wants it.
        device: Where it runs.

    Raises:
        HrnetppError: If transformers is absent, the weights cannot be had, or the model knows no person.

    Reference: Peng et al., D-FINE, arXiv 2410.13842.
    """

    def __init__(
        self,
        model: str = "ustc-community/dfine-large-coco",
        score_threshold: float = 0.3,
        device: str = "cpu",
    ):
        try:
            from transformers import AutoImageProcessor, AutoModelForObjectDetection
        except ImportError as error:
            raise HrnetppError(
                f"detector {model}: cannot import transformers ({error}); pip install 'hrnetpp-lib[detect]'"
            ) from error
        try:
            self._processor = AutoImageProcessor.from_pretrained(model)
            self._network = AutoModelForObjectDetection.from_pretrained(model).to(device).eval()
        except (OSError, ValueError, ImportError) as error:
            raise HrnetppError(
                f"detector {model}: its weights cannot be loaded ({error}); check the name and the network, "
                "or pass a folder that holds them"
            ) from error
        labels = self._network.config.id2label
        person_labels = [int(label) for label, name in labels.items() if name == "person"]
        if len(person_labels) != 1:
            raise HrnetppError(
                f"detector {model}: no label is named 'person'; choose a model trained on COCO"
            )
        self._person_label, self._score_threshold, self._device = person_labels[0], score_threshold, device

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the persons, best first.

        Args:
            image: (h, w, 3) uint8 RGB.

        Returns:
            Boxes (N, 4) as xywh in image px, and scores (N,), both float64.
        """
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        found = self._processor.post_process_object_detection(
            self._network(**inputs), threshold=self._score_threshold, target_sizes=[image.shape[:2]]
        )[0]
        scores, corners = (found[key].double().cpu().numpy() for key in ("scores", "boxes"))
        persons = np.flatnonzero(found["labels"].cpu().numpy() == self._person_label)
        persons = persons[np.argsort(-scores[persons], kind="stable")]
        start, end = np.split(corners[persons], 2, axis=1)
        return np.hstack([start, end - start]), scores[persons]
