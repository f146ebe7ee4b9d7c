"""The data explorer for JupyterLab: who is in a picture, and what training makes of one person."""

from dataclasses import replace

import ipywidgets as widgets
import numpy as np
from torch.utils.data import default_collate

from hrnetpp_lib.data.crops import Sample, TrainCrops
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw import render_heatmaps, render_images
from hrnetpp_lib.explore import panels
from hrnetpp_lib.explore.panels import ClickableImage
from hrnetpp_lib.pose import heatmap
from hrnetpp_lib.pose.geometry import CONVENTIONS
from hrnetpp_lib.recipe import Run

_SAMPLES = 6
_SLIDERS = {  # field of recipe.Augmentation: highest value, step
    "scale_std": (0.5, 0.05),
    "rotation_std_deg": (90.0, 5.0),
    "rotation_probability": (1.0, 0.1),
    "flip_probability": (1.0, 0.1),
    "half_body_probability": (1.0, 0.1),
}


def sample_crops(table: PersonTable, run: Run, person: int, reroll: int) -> list[Sample]:
    """Six training samples of the person of that row; the same `reroll` gives the same handful."""
    epochs = range(reroll * _SAMPLES, (reroll + 1) * _SAMPLES)
    return [TrainCrops.of_run(table, run, epoch)[person] for epoch in epochs]


def pose_in_crop(sample: Sample, run: Run) -> np.ndarray:
    """(K, 3) keypoints of a training sample in input px, with 2 as third number where the L1 counts them."""
    stride = CONVENTIONS[run.stage.coordinates].stride_xy(run.profile.input_hw)
    return np.column_stack([sample.keypoints_heatmap * stride, sample.keypoint_weight * 2])


class DataExplorer(panels.Explorer):
    """Choose a labelled person; see keypoints by visibility, random crops and heatmap targets of a run.

    Raises: HrnetppError if there is nothing to show. Later mistakes are shown in the widget.
    """

    _LABEL_WIDTH = "140px"

    def __init__(self, table: PersonTable, run: Run):
        super().__init__(table)
        self._table, self._run, self._reroll = table, run, 0
        self.keypoint = self._menu(panels.keypoint_names(table.skeleton), "keypoint")
        self.visible = widgets.Checkbox(True, description="visible (v = 2)", indent=False)
        self.hidden = widgets.Checkbox(True, description="hidden (v = 1)", indent=False)
        self.reroll = widgets.Button(description="reroll", icon="refresh")
        self.augmentation = {
            name: self._slider(getattr(run.stage.augmentation, name), 0, high, step, name.replace("_", " "))
            for name, (high, step) in _SLIDERS.items()
        }
        self.sigma = self._slider(run.profile.heatmap_sigma, 0.5, 4.0, 0.25, "sigma (cells)")
        self.whole = ClickableImage(alt="the picture with its labels")
        self.samples = ClickableImage(alt="six random crops of the person")
        self.target = ClickableImage(alt="the target heatmap of one keypoint, over each crop")
        self._arrange(
            [self.picture, self.keypoint, self.visible, self.hidden],
            [self.message],
            [self.strip],
            [self.whole, widgets.VBox([self.samples, self.target])],
            [self.reroll, *self.augmentation.values(), self.sigma],
        )
        self._on(self._open, self.picture)
        self._on(self._draw_whole, self.visible, self.hidden)
        self._on(self._sample, *self.augmentation.values())
        self._on(self._draw_target, self.keypoint, self.sigma)
        self.reroll.on_click(lambda _button: self._try(self._roll))
        self._open()

    def _open(self) -> None:
        picture = self._pictures[self.picture.value]
        self._image, self._boxes = picture.read(), picture.boxes
        self._draw_whole()
        self._choose_person(0)

    def _choose_person(self, chosen: int) -> None:
        self._person = self._boxes[chosen].row
        self._frame_person(chosen)
        self._sample()

    def _draw_whole(self) -> None:
        shown = [v for v, control in ((2, self.visible), (1, self.hidden)) if control.value]
        rows = [box.row for box in self._boxes]
        poses = self._table.keypoints[rows]
        poses = poses * np.isin(poses[:, :, 2:], shown)
        boxes = [self._table.bboxes_xywh[rows]]
        figure = render_images([self._image], [poses], self._table.skeleton, boxes, columns=1)
        figure.set_size_inches(figure.get_size_inches() * 0.55)
        self.whole.png = panels.encode_png(figure)

    def _roll(self) -> None:
        self._reroll += 1
        self._sample()

    def _sample(self) -> None:
        chosen = {name: control.value for name, control in self.augmentation.items()}
        stage = replace(self._run.stage, augmentation=replace(self._run.stage.augmentation, **chosen))
        run = replace(self._run, stage=stage)
        crops = sample_crops(self._table, run, self._person, self._reroll)
        poses = [[pose_in_crop(crop, run)] for crop in crops]
        self._crops, skeleton = default_collate(crops), self._table.skeleton
        figure = render_images(self._crops.image.numpy(), poses, skeleton, columns=_SAMPLES)
        self.samples.png = panels.encode_png(figure)
        self._draw_target()

    def _draw_target(self) -> None:
        crops, sizes = self._crops, (self._run.profile.heatmap_hw, self.sigma.value)
        maps = heatmap.draw_gaussians(crops.peaks, crops.target_weight, *sizes)[
            :, self.keypoint.value
        ].numpy()
        titles = ["target" if target.any() else "no target" for target in maps]
        figure = render_heatmaps(crops.image.numpy(), maps, titles, columns=_SAMPLES)
        self.target.png = panels.encode_png(figure)
