"""The heatmap explorer for JupyterLab: where a keypoint lands, why, and how sure the network is."""

import contextlib
import html
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import ipywidgets as widgets
import numpy as np

from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS
from hrnetpp_lib.explore import panels as views
from hrnetpp_lib.explore.panels import ClickableImage
from hrnetpp_lib.explore.session import (
    METHODS,
    Box,
    Network,
    Scene,
    ask,
    best_labelled,
    best_match,
    compare,
    open_networks,
    open_picture,
    open_scenes,
    thumbnails,
    whole_image_box,
)

_SHOWN_PX = (320, 480)  # width and height of the whole picture, a little more than its panel has
_HINT = (
    "Click a person or a keypoint. Drag the box to move it, start outside it to draw another; a click on the "
    "person brings the first box back."
)
_WEAK = f"<b>No keypoint peaks above {views.POSE_THRESHOLD}: this network is too weak to draw a pose.</b> "
_WIDE = widgets.Layout(width="330px")
_STYLE = {"description_width": "90px"}
_TABLE_CSS = (
    "<style>table.positions td, table.positions th {padding: 2px 10px; text-align: right; font-size: 13px}"
    "table.positions td:first-child {text-align: left}</style>"
)


class HeatmapExplorer(widgets.VBox):
    """Choose a picture, a person, a keypoint and a network; see the heatmap and what decoders make of it.

    It opens on the person with the most labelled keypoints. Click a person in the strip or a keypoint in a
    picture; drag the box in the left picture, or draw another. A new forward is run when the box, its
    padding, the network or the views change; all else decodes anew what the network has said.

    Args:
        networks: A checkpoint, a (network, card) pair, or several of them by name.
        people: A table of persons, a picture, several, or a folder of them. Where nobody is known the box is
            the whole picture, to be drawn smaller with the mouse.

    Raises:
        HrnetppError: If there is nothing to show. Later mistakes, like a path that does not exist, are shown
            in the widget.
    """

    def __init__(
        self,
        networks: Network | Path | str | Mapping[str, Network | Path | str],
        people: PersonTable | Path | str | list[Path | str],
    ):
        self._networks = open_networks(networks)
        self._scenes = open_scenes(people)
        self._uploads = tempfile.TemporaryDirectory(prefix="hrnetpp_")
        self._before_drag: np.ndarray | None = None
        self._panel: views.ContourPanel | None = None
        self._listening = True
        self._make_controls()
        self._make_pictures()
        super().__init__(self._arrange())
        self.scene.value = best_labelled(self._scenes)
        self._connect()
        self._open_scene()

    def _make_controls(self) -> None:
        def menu(options: list, label: str) -> widgets.Dropdown:
            return widgets.Dropdown(options=options, description=label, layout=_WIDE, style=_STYLE)

        def slider(value: float, low: float, high: float, step: float, label: str) -> widgets.FloatSlider:
            return widgets.FloatSlider(
                value, min=low, max=high, step=step, description=label, layout=_WIDE, style=_STYLE
            )

        skeleton = next(iter(self._networks.values()))[1].skeleton
        names = [(name.replace("_", " "), k) for k, name in enumerate(skeleton.names)]
        self.scene = menu([(scene.name, i) for i, scene in enumerate(self._scenes)], "picture")
        self.network = menu(list(self._networks), "network")
        self.keypoint = menu(names, "keypoint")
        self.person = menu([("1", 0)], "person")
        self.alpha = widgets.FloatLogSlider(
            60, base=10, min=0, max=np.log10(200), step=np.log10(60) / 89, readout_format=".3g",
            description="alpha", layout=_WIDE, style=_STYLE,
        )  # fmt: skip
        self.blend = slider(0.6, 0, 1, 0.05, "blend")
        self.padding = slider(1.25, 1.0, 2.0, 0.05, "box padding")
        self.shift_x = slider(0.0, -0.3, 0.3, 0.01, "box shift x")
        self.shift_y = slider(0.0, -0.3, 0.3, 0.01, "box shift y")
        self.flip = widgets.Checkbox(True, description="average with the mirrored crop", indent=False)
        self.tta = widgets.Checkbox(False, description="average over five views (TTA)", indent=False)
        self.shape = widgets.ToggleButtons(options=["contour", "3-D"], style={"button_width": "70px"})
        self.path = widgets.Text(
            placeholder="path of a picture of yours", layout=_WIDE, continuous_update=False
        )
        self.upload = widgets.FileUpload(
            accept="image/*", description="upload a picture", layout=widgets.Layout(width="180px")
        )
        self.message = widgets.HTML(layout=widgets.Layout(min_height="22px"))
        self.hint = widgets.HTML()

    def _make_pictures(self) -> None:
        self.strip = ClickableImage(alt="the people of the picture; click one")
        self.whole = ClickableImage(alt="the picture with box and pose; drag the box, click a keypoint")
        self.crop = ClickableImage(alt="the crop with the heatmap over it; click a keypoint")
        self.map = ClickableImage(alt="the heatmap with the positions of each decoder")
        self.marginals = ClickableImage(alt="marginals of the softmax of the heatmap")
        self.table = widgets.HTML()

    def _arrange(self) -> list[widgets.Widget]:
        wrap = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="6px 14px")
        rows = [
            [self.scene, self.network, self.keypoint],
            [self.person, self.path, self.upload],
            [self.message],
            [self.strip, self.hint],
            [self.whole, self.crop, widgets.VBox([self.map, self.shape]), self.marginals],
            [self.table, widgets.VBox([self.flip, self.tta])],
            [self.alpha, self.blend, self.padding, self.shift_x, self.shift_y],
        ]
        return [widgets.HBox(row, layout=wrap) for row in rows]

    def _connect(self) -> None:
        """Which control changes what; `_guard` turns errors into messages."""

        def on(control: widgets.Widget, action: Callable[[], None], trait: str = "value") -> None:
            control.observe(lambda _change: self._listening and self._guard(action), trait)

        on(self.scene, self._open_scene)
        on(self.person, lambda: self._choose_person(self.person.value))
        on(self.network, self._change_network)
        for control in (self.padding, self.shift_x, self.shift_y, self.tta):
            on(control, self._ask)
        on(self.flip, self._decode)
        on(self.keypoint, self._draw)
        on(self.alpha, self._draw_positions)
        on(self.shape, self._draw_map)
        on(self.blend, self._draw_crop)
        on(self.upload, self._take_upload)
        on(self.path, self._take_path)
        on(self.strip, self._pick_person, "gesture")
        on(self.whole, self._touch_whole, "gesture")
        on(self.crop, self._touch_crop, "gesture")

    def _guard(self, action: Callable[[], None]) -> None:
        self.message.value = ""
        try:
            action()
        except HrnetppError as error:
            self.message.value = f"<b style='color:#D55E00'>{html.escape(str(error))}</b>"

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """While entered, controls are set without an answer."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True

    def _open_scene(self) -> None:
        scene = self._scenes[self.scene.value]
        # Annotations refer to the stored pixels; a picture without them is shown as its camera was held.
        self._image = read_image(scene.path, upright=not scene.boxes)
        height, width = self._image.shape[:2]
        self._reduction = min(1.0, _SHOWN_PX[0] / width, _SHOWN_PX[1] / height)
        shrink = {"fx": self._reduction, "fy": self._reduction, "interpolation": cv2.INTER_AREA}
        self._small = cv2.resize(self._image, None, **shrink)
        self._boxes = list(scene.boxes) or [whole_image_box(self._image)]
        with self._quietly():
            self.person.options = [(str(i + 1), i) for i in range(len(self._boxes))]
        self._choose_person(scene.best_labelled)

    def _choose_person(self, person: int) -> None:
        self._before_drag = None
        self._box = self._boxes[person]
        with self._quietly():
            self.shift_x.value = self.shift_y.value = 0.0
        self._frame_person(person)
        self._ask()

    def _frame_person(self, person: int) -> None:
        self._person = person
        with self._quietly():
            self.person.value = person
        self.strip.png = views.encode_image(thumbnails(self._image, self._boxes, person))

    def _change_network(self) -> None:
        skeleton = self._networks[self.network.value][1].skeleton
        names = [(name.replace("_", " "), k) for k, name in enumerate(skeleton.names)]
        if self.keypoint.options != tuple(names):
            kept = min(self.keypoint.value, len(names) - 1)
            with self._quietly():
                self.keypoint.options = names
                self.keypoint.value = kept
        self._ask()

    def _ask(self) -> None:
        """A new forward."""
        model, card = self._networks[self.network.value]
        w, h = self._box.bbox_xywh[2:]
        shift = np.array([self.shift_x.value * w, self.shift_y.value * h, 0, 0])
        self._shown_bbox = self._box.bbox_xywh + shift
        views = TTA_VIEWS if self.tta.value else SINGLE_VIEW
        self.answer = ask(model, card, self._image, self._shown_bbox, views, self.padding.value)
        known = self._box.truth is not None and len(self._box.truth) == len(card.skeleton)
        self._truth = self._box.truth if known else None
        self._decode()

    def _decode(self) -> None:
        """The pose by the network's own decoder; what the alpha slider moves is shown beside it."""
        card = self.answer.card
        own = METHODS[2] if card.decoder == "soft_argmax" else METHODS[1]
        self._pose = self.answer.positions(card.alpha, self.flip.value)[own]
        self._scores = self.answer.scores(self.flip.value)
        self.hint.value = (_WEAK if self._scores.max() <= views.POSE_THRESHOLD else "") + _HINT
        pose = np.column_stack([self.answer.to_image(self._pose) * self._reduction, self._scores])
        truth = None if self._truth is None else self._truth * (self._reduction, self._reduction, 1)
        bbox = self._shown_bbox * self._reduction
        figure = views.render_box(self._small, bbox, pose, card.skeleton, truth)
        self.whole.png = views.encode_png(figure)
        self._draw()

    def _draw(self) -> None:
        self._draw_crop()
        self._draw_map()

    def _heatmap(self) -> np.ndarray:
        return self.answer.heatmaps(self.flip.value)[0, self.keypoint.value].numpy()

    def _draw_crop(self) -> None:
        card = self.answer.card
        stride = card.coordinates.stride_xy(card.input_hw)
        truth = None
        if self._truth is not None:
            truth = np.column_stack([self.answer.to_heatmap(self._truth[:, :2]) * stride, self._truth[:, 2]])
        figure = views.render_crop(
            self.answer.crops[0],
            self._heatmap(),
            self.blend.value,
            np.column_stack([self._pose * stride, self._scores]),
            card.skeleton,
            self.keypoint.value,
            truth,
        )
        self.crop.png = views.encode_png(figure)

    def _draw_map(self) -> None:
        self._panel = None  # of another heatmap
        self._draw_positions()

    def _draw_positions(self) -> None:
        """All that alpha moves."""
        heatmap, keypoint, alpha = self._heatmap(), self.keypoint.value, self.alpha.value
        box = Box(self._box.bbox_xywh, self._truth, self._box.area)
        rows = compare(self.answer, box, keypoint, self.answer.positions(alpha, self.flip.value))
        name = self.answer.card.skeleton.names[keypoint].replace("_", " ")
        if self.shape.value == "contour":
            self._panel = self._panel or views.ContourPanel(heatmap, rows, name)
            self.map.png = self._panel.draw(rows)
        else:
            self.map.png = views.encode_png(views.render_surface(heatmap, rows, name))
        self.marginals.png = views.encode_png(views.render_marginals(heatmap, alpha, rows))
        self.table.value = _TABLE_CSS + views.table_html(rows)

    def _pick_person(self) -> None:
        if self.strip.gesture["kind"] == "click":
            person = int(self.strip.gesture["to"][0] * len(self._boxes))
            self._choose_person(min(max(person, 0), len(self._boxes) - 1))

    def _touch_whole(self) -> None:
        """A click picks the nearest keypoint; a drag moves the box, or draws one if it starts outside."""
        size = np.array(self._image.shape[1::-1])
        start, end = (np.array(self.whole.gesture[name]) * size for name in ("from", "to"))
        if self.whole.gesture["kind"] == "click":
            self._pick_keypoint(self.answer.to_image(self._pose), end)
            return
        if self._before_drag is None:
            self._before_drag = self._shown_bbox.copy()
        x, y, w, h = before = self._before_drag
        is_everything = w * h > 0.9 * size.prod()
        if x <= start[0] <= x + w and y <= start[1] <= y + h and not is_everything:
            corner = np.clip(before[:2] + end - start, -before[2:] / 2, size - before[2:] / 2)
            bbox, person = np.concatenate([corner, before[2:]]), self._box
        else:
            bbox = np.concatenate([np.minimum(start, end), np.maximum(np.abs(end - start), 4)])
            person = self._meet(bbox)
        bbox[:2] -= bbox[2:] * (self.shift_x.value, self.shift_y.value)  # `_ask` adds the sliders' shift
        self._box = Box(bbox, person.truth, person.area)
        if self.whole.gesture["kind"] == "drop":
            self._before_drag = None
        self._ask()

    def _meet(self, bbox: np.ndarray) -> Box:
        """The known person that a drawn box is around; nobody's truth if it is around none."""
        person = best_match(bbox, self._boxes)
        if person is None:
            return Box(bbox)
        if person != self._person:
            self._frame_person(person)
        return self._boxes[person]

    def _touch_crop(self) -> None:
        if self.crop.gesture["kind"] == "click":
            height, width = self.answer.crops.shape[1:3]
            place = np.array(self.crop.gesture["to"]) * (width, height)
            card = self.answer.card
            self._pick_keypoint(self._pose * card.coordinates.stride_xy(card.input_hw), place)

    def _pick_keypoint(self, points: np.ndarray, place: np.ndarray) -> None:
        self.keypoint.value = int(np.hypot(*(points - place).T).argmin())

    def _take_path(self) -> None:
        path = self.path.value.strip().strip("'\"")
        if path:
            self._add(open_scenes(path))

    def _take_upload(self) -> None:
        for file in self.upload.value:
            self._add([open_picture(bytes(file["content"]), file["name"], Path(self._uploads.name))])

    def _add(self, scenes: list[Scene]) -> None:
        """New pictures into the menu, and the first of them onto the screen."""
        read_image(scenes[0].path)  # complains before the menu knows it
        known = {scene.path for scene in self._scenes}
        self._scenes += [scene for scene in scenes if scene.path not in known]
        first = [scene.path for scene in self._scenes].index(scenes[0].path)
        with self._quietly():
            self.scene.options = [(scene.name, i) for i, scene in enumerate(self._scenes)]
            self.scene.value = first
        self._open_scene()
