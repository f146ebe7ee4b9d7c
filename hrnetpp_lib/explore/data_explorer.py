"""The data explorer for JupyterLab: who is in a picture, and what training makes of one person."""

from dataclasses import replace

import ipywidgets as widgets
import numpy as np

from hrnetpp_lib.data.crops import Sample, TrainCrops
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw import render_heatmaps, render_images
from hrnetpp_lib.explore import panels as views
from hrnetpp_lib.explore.panels import ClickableImage
from hrnetpp_lib.explore.session import open_scenes, thumbnails
from hrnetpp_lib.pose.heatmap import encode
from hrnetpp_lib.recipe import Run

_SAMPLES = 6
_WIDE = widgets.Layout(width="330px")
_STYLE = {"description_width": "140px"}
_SLIDERS = {  # field of recipe.Augmentation: highest value, step
    "scale_std": (0.5, 0.05),
    "rotation_std_deg": (90.0, 5.0),
    "rotation_probability": (1.0, 0.1),
    "flip_probability": (1.0, 0.1),
    "half_body_probability": (1.0, 0.1),
}


def sample_crops(
    table: PersonTable, run: Run, person: int, reroll: int, number: int = _SAMPLES
) -> list[Sample]:
    """Training samples of one person, as `data.TrainCrops` gives them.

    Args:
        table: The persons.
        run: Gives input size and augmentation.
        person: Row of the table.
        reroll: Which handful; the same number gives the same samples.
        number: How many.
    """
    return [TrainCrops.of_run(table, run, epoch=reroll * number + i)[person] for i in range(number)]


class DataExplorer(widgets.VBox):
    """Choose a picture and a person; see keypoints by visibility, random crops and heatmap targets.

    Args:
        table: Labelled persons.
        run: The recipe whose augmentation and targets are the starting point.

    Raises:
        HrnetppError: If the table's pictures are missing.
    """

    def __init__(self, table: PersonTable, run: Run):
        self._table, self._run, self._reroll = table, run, 0
        self._scenes = open_scenes(table)
        self._make_controls()
        self.strip = ClickableImage(alt="the people of the picture; click one")
        self.whole = ClickableImage(alt="the picture with its labels")
        self.samples = ClickableImage(alt="six random crops of the person")
        self.target = ClickableImage(alt="the target heatmap of one keypoint, over each crop")
        wrap = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="6px 14px")
        rows = [
            [self.scene, self.keypoint, self.visible, self.hidden],
            [self.strip],
            [self.whole, widgets.VBox([self.samples, self.target])],
            [self.reroll, *self.augmentation.values(), self.sigma],
        ]
        super().__init__([widgets.HBox(row, layout=wrap) for row in rows])
        self._connect()
        self._open_scene()

    def _make_controls(self) -> None:
        def slider(value: float, high: float, step: float, label: str, low: float = 0) -> widgets.FloatSlider:
            return widgets.FloatSlider(
                value, min=low, max=high, step=step, description=label, layout=_WIDE, style=_STYLE
            )

        names = [(name.replace("_", " "), k) for k, name in enumerate(self._table.skeleton.names)]
        pictures = [(scene.name, i) for i, scene in enumerate(self._scenes)]
        self.scene = widgets.Dropdown(options=pictures, description="picture", layout=_WIDE)
        self.keypoint = widgets.Dropdown(options=names, description="keypoint", layout=_WIDE)
        self.visible = widgets.Checkbox(True, description="visible (v = 2)", indent=False)
        self.hidden = widgets.Checkbox(True, description="hidden (v = 1)", indent=False)
        self.reroll = widgets.Button(description="reroll", icon="refresh")
        self.augmentation = {
            name: slider(
                getattr(self._run.stage.augmentation, name), high, step, name.replace("_", " ")
            )
            for name, (high, step) in _SLIDERS.items()
        }  # fmt: skip
        self.sigma = slider(self._run.profile.heatmap_sigma, 4.0, 0.25, "sigma (cells)", low=0.5)

    def _connect(self) -> None:
        self.scene.observe(lambda _change: self._open_scene(), "value")
        self.strip.observe(lambda _change: self._pick_person(), "gesture")
        for control in (self.visible, self.hidden):
            control.observe(lambda _change: self._draw_whole(), "value")
        for control in self.augmentation.values():
            control.observe(lambda _change: self._sample(), "value")
        for control in (self.keypoint, self.sigma):
            control.observe(lambda _change: self._draw_target(), "value")
        self.reroll.on_click(lambda _button: self._roll())

    def _open_scene(self) -> None:
        scene = self._scenes[self.scene.value]
        self._image = read_image(scene.path)
        self._persons = scene.rows
        self._draw_whole()
        self._choose_person(0)

    def _pick_person(self) -> None:
        chosen = int(self.strip.gesture["to"][0] * len(self._persons))
        self._choose_person(min(max(chosen, 0), len(self._persons) - 1))

    def _choose_person(self, chosen: int) -> None:
        self._person = self._persons[chosen]
        boxes = self._scenes[self.scene.value].boxes
        self.strip.png = views.encode_image(thumbnails(self._image, boxes, chosen))
        self._sample()

    def _draw_whole(self) -> None:
        shown = [v for v, control in ((2, self.visible), (1, self.hidden)) if control.value]
        poses = []
        for pose in self._table.keypoints[list(self._persons)]:
            keep = np.isin(pose[:, 2], shown)
            poses.append(pose * keep[:, None])
        boxes = [self._table.bboxes_xywh[list(self._persons)]]
        figure = render_images([self._image], [poses], self._table.skeleton, boxes, columns=1)
        figure.set_size_inches(figure.get_size_inches() * 0.55)
        self.whole.png = views.encode_png(figure)

    def _roll(self) -> None:
        self._reroll += 1
        self._sample()

    def _sample(self) -> None:
        chosen = {name: control.value for name, control in self.augmentation.items()}
        stage = replace(self._run.stage, augmentation=replace(self._run.stage.augmentation, **chosen))
        run = replace(self._run, stage=stage)
        self._crops = sample_crops(self._table, run, self._person, self._reroll)
        poses = [
            [np.column_stack([crop.keypoints_heatmap * 4, crop.keypoint_weight * 2])] for crop in self._crops
        ]
        crops = [crop.image for crop in self._crops]
        figure = render_images(crops, poses, self._table.skeleton, columns=_SAMPLES)
        self.samples.png = views.encode_png(figure)
        self._draw_target()

    def _draw_target(self) -> None:
        profile, keypoint = self._run.profile, self.keypoint.value
        maps = [
            encode(
                4 * crop.keypoints_heatmap,
                crop.target_weight,
                profile.input_hw,
                profile.heatmap_hw,
                self.sigma.value,
            )[0][keypoint]
            for crop in self._crops
        ]
        titles = ["target" if target.any() else "no target" for target in maps]
        crops = [crop.image for crop in self._crops]
        self.target.png = views.encode_png(render_heatmaps(crops, maps, titles, columns=_SAMPLES))
