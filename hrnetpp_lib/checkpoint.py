"""A trained network together with what one must know to use it: keypoints, input size, decoding."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from hrnetpp_lib.coordinates import OFFICIAL, Coordinates, get_coordinates
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.keypoints import COCO17, SKELETONS, Skeleton
from hrnetpp_lib.recipe import Run
from hrnetpp_lib.weights import load_model, save_model


@dataclass(frozen=True)
class ModelCard:
    """How to use a network; stored in the checkpoint's header.

    Attributes:
        skeleton: The keypoints of the output channels.
        input_hw: Input height and width in px.
        decoder: How heatmaps become keypoints.
        alpha: Inverse temperature of the soft-argmax decoder.
        coordinates: What a cell means in input px, and the shift after mirroring.
        run: Name of the training run, empty for foreign weights.
    """

    skeleton: Skeleton = COCO17
    input_hw: tuple[int, int] = (384, 288)
    decoder: Literal["quarter_offset", "soft_argmax"] = "quarter_offset"
    alpha: float = 60.0
    coordinates: Coordinates = OFFICIAL
    run: str = ""

    @classmethod
    def of_run(cls, run: Run, skeleton: Skeleton) -> "ModelCard":
        """The card of the network that a training run makes."""
        stage = run.stage
        coordinates = get_coordinates(stage.coordinates)
        return cls(skeleton, run.profile.input_hw, stage.decoder, stage.alpha, coordinates, run.name)


def save_checkpoint(model: HRNet, card: ModelCard, path: Path) -> None:
    """Write weights and card to one safetensors file, whole or not at all."""
    names = {"skeleton": card.skeleton.name, "coordinates": card.coordinates.name}
    content = asdict(replace(card, skeleton=None)) | names
    save_model(model, path, {"card": json.dumps(content)})


def load_checkpoint(path: Path) -> tuple[HRNet, ModelCard]:
    """Rebuild network and card from a file of `save_checkpoint`; the network is in eval mode.

    Raises:
        HrnetppError: If the file is missing, damaged, or was not written by this package, or a weight is not
            finite.
    """
    model, metadata = load_model(path)
    spoilt = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if spoilt:
        raise HrnetppError(f"{path}: {spoilt[0]} is not finite; use another checkpoint, or train anew")
    try:
        content = json.loads(metadata["card"])
        content["skeleton"] = SKELETONS[content["skeleton"]]
        content["coordinates"] = get_coordinates(content["coordinates"])
        content["input_hw"] = tuple(content["input_hw"])
        card = ModelCard(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise HrnetppError(
            f"{path}: holds weights but no model card ({error!r}); train with this package, or load the "
            "weights with weights.load_weights into a network of your choice"
        ) from error
    return model.eval(), card
