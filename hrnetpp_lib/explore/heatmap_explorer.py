"""The heatmap explorer for JupyterLab: where a keypoint lands, why, and how sure the network is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import ipywidgets as widgets
import numpy as np

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS
from hrnetpp_lib.explore import panels, session
from hrnetpp_lib.explore.panels import ClickableImage
from hrnetpp_lib.explore.session import Box
from hrnetpp_lib.pose.geometry import BOX_PADDING

_SHOWN_PX = (320, 480)  # width and height of the whole picture, a little more than its panel has
_HINT = (
    "Click a person or a keypoint. Drag the box to move it, start outside it to draw another; a click on the "
    "person brings the first box back."
)
_WEAK = f"<b>No keypoint peaks above {panels.POSE_THRESHOLD}: this network is too weak to draw a pose.</b> "


class HeatmapExplorer(panels.Explorer):
    """Choose a picture, a person, a keypoint and a network; see the heatmap and what decoders make of it.

    It opens on the person with the most labelled keypoints. A new forward is run when the box, its padding,
    the network or the views change; all else decodes anew what the network has said.

    Args:
        networks: A file as of `session.open_networks`, a (network, card) pair, or several of them by name.
        people: A table of persons, a picture, several, or a folder of them. Where nobody is known the box is
            the whole picture, to be drawn smaller with the mouse.

    Raises: HrnetppError if there is nothing to show. Later mistakes are shown in the widget.
    """

    def __init__(
        self,
        networks: session.Network | Mapping[str, session.Network],
        people: PersonTable | Path | str | Sequence[Path | str],
    ):
        super().__init__(people)
        self._networks = session.open_networks(networks)
        self._make_controls()
        self.whole = ClickableImage(alt="the picture with box and pose; drag the box, click a keypoint")
        self.crop = ClickableImage(alt="the crop with the heatmap over it; click a keypoint")
        self.map = ClickableImage(alt="the heatmap with the positions of each decoder")
        self.marginals = ClickableImage(alt="marginals of the softmax of the heatmap")
        self.table, self.hint = widgets.HTML(), widgets.HTML()
        self._arrange(
            [self.picture, self.network, self.keypoint],
            [self.person, self.path, self.upload, self.file],
            [self.message],
            [self.strip, self.hint],
            [self.whole, self.crop, widgets.VBox([self.map, self.shape]), self.marginals],
            [self.table, widgets.VBox([self.flip, self.tta])],
            [self.alpha, self.blend, self.padding, self.shift_x, self.shift_y],
        )
        everybody = [(i, box) for i, picture in enumerate(self._pictures) for box in picture.boxes]
        if everybody:
            self.picture.value = everybody[session.best_labelled([box for _, box in everybody])][0]
        self._connect()
        self._open()

    def _make_controls(self) -> None:
        skeleton = next(iter(self._networks.values()))[1].skeleton
        self.network = self._menu(list(self._networks), "network")
        self.keypoint = self._menu(panels.keypoint_names(skeleton), "keypoint")
        self.person = self._menu([("1", 0)], "person")
        logarithmic = {"base": 10, "min": 0, "max": np.log10(200), "step": np.log10(60) / 89}
        self.alpha = widgets.FloatLogSlider(60, readout_format=".3g", **logarithmic, **self._look("alpha"))
        self.blend = self._slider(0.6, 0, 1, 0.05, "blend")
        self.padding = self._slider(BOX_PADDING, 1.0, 2.0, 0.05, "box padding")
        self.shift_x = self._slider(0.0, -0.3, 0.3, 0.01, "box shift x")
        self.shift_y = self._slider(0.0, -0.3, 0.3, 0.01, "box shift y")
        self.flip = widgets.Checkbox(True, description="average with the mirrored crop", indent=False)
        self.tta = widgets.Checkbox(False, description="average over five views (TTA)", indent=False)
        self.shape = widgets.ToggleButtons(options=["contour", "3-D"], style={"button_width": "70px"})
        self.path = widgets.Text(placeholder="path of a picture or folder of yours", continuous_update=False)
        self.file = widgets.Text(
            placeholder="path of a network: .safetensors, .pth, .onnx", continuous_update=False
        )
        self.path.layout = self.file.layout = self.picture.layout
        self.upload = widgets.FileUpload(accept="image/*", description="upload a picture")
        self.upload.layout.width = "180px"

    def _connect(self) -> None:
        """Which control changes what."""
        self._on(self._open, self.picture)
        self._on(lambda: self._choose_person(self.person.value), self.person)
        self._on(self._change_network, self.network)
        self._on(self._ask, self.padding, self.shift_x, self.shift_y, self.tta)
        self._on(self._decode, self.flip)
        self._on(self._draw_crop, self.blend, self.keypoint)
        self._on(self._draw_map, self.shape, self.keypoint)
        self._on(self._draw_positions, self.alpha)
        self._on(self._take_upload, self.upload)
        self._on(self._take_path, self.path)
        self._on(self._take_network, self.file)
        self._on(self._touch_whole, self.whole)
        self._on(self._touch_crop, self.crop)

    def _open(self) -> None:
        picture = self._pictures[self.picture.value]
        image = picture.read()
        height, width = image.shape[:2]
        self._reduction = min(1.0, _SHOWN_PX[0] / width, _SHOWN_PX[1] / height)
        small = [max(round(self._reduction * length), 1) for length in (width, height)]
        self._image, self._small = image, cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        self._boxes = picture.boxes or (Box(np.array([0.0, 0.0, width, height])),)
        self._set(self.person, options=[(str(i + 1), i) for i in range(len(self._boxes))])
        self._choose_person(session.best_labelled(self._boxes))

    def _choose_person(self, person: int) -> None:
        self._before_drag = None
        self._box = self._boxes[person]
        self._set(self.shift_x, value=0.0)
        self._set(self.shift_y, value=0.0)
        self._frame_person(person)
        self._ask()

    def _frame_person(self, person: int) -> None:
        self._person = person
        self._set(self.person, value=person)
        super()._frame_person(person)

    def _change_network(self) -> None:
        names = panels.keypoint_names(self._networks[self.network.value][1].skeleton)
        self._set(self.keypoint, options=names, value=min(self.keypoint.value, len(names) - 1))
        self._ask()

    def _ask(self) -> None:
        """A new forward."""
        model, card = self._networks[self.network.value]
        w, h = self._box.bbox_xywh[2:]
        shifted = self._box.bbox_xywh + (self.shift_x.value * w, self.shift_y.value * h, 0, 0)
        views = TTA_VIEWS if self.tta.value else SINGLE_VIEW
        self.answer = session.ask(model, card, self._image, shifted, views, self.padding.value)
        self._shown_bbox = shifted
        known = self._box.truth is not None and len(self._box.truth) == len(card.skeleton)
        self._truth = self._box.truth if known else None
        self._decode()

    def _decode(self) -> None:
        """The pose by the network's own decoder; what the alpha slider moves is shown beside it."""
        card = self.answer.card
        self._pose = self.answer.positions(card.alpha, self.flip.value)[card.decoder]
        self._scores = self.answer.scores(self.flip.value)
        self._maps = self.answer.heatmaps(self.flip.value)[0].numpy()
        self.hint.value = (_WEAK if self._scores.max() <= panels.POSE_THRESHOLD else "") + _HINT
        pose = np.column_stack([self.answer.to_image(self._pose) * self._reduction, self._scores])
        truth = None if self._truth is None else self._truth * (self._reduction, self._reduction, 1)
        bbox = self._shown_bbox * self._reduction
        self.whole.png = panels.encode_png(panels.render_box(self._small, bbox, pose, card.skeleton, truth))
        self._draw_crop()
        self._draw_map()

    def _draw_crop(self) -> None:
        answer, truth = self.answer, self._truth
        pose = np.column_stack([self._pose * answer.stride_xy, self._scores])
        if truth is not None:
            truth = np.column_stack([answer.to_heatmap(truth[:, :2]) * answer.stride_xy, truth[:, 2]])
        seen = (answer.crops[0], self._maps[self.keypoint.value], self.blend.value)
        figure = panels.render_crop(*seen, pose, answer.card.skeleton, self.keypoint.value, truth)
        self.crop.png = panels.encode_png(figure)

    def _draw_map(self) -> None:
        self._panel = None  # of another heatmap
        self._draw_positions()

    def _draw_positions(self) -> None:
        """All that alpha moves."""
        keypoint, alpha = self.keypoint.value, self.alpha.value
        heatmap = self._maps[keypoint]
        box = Box(self._box.bbox_xywh, self._truth, self._box.area)
        positions = session.compare(self.answer, box, keypoint, self.answer.positions(alpha, self.flip.value))
        name, _ = self.keypoint.options[keypoint]
        if self.shape.value == "contour":
            self._panel = self._panel or panels.ContourPanel(heatmap, positions, name)
            self.map.png = self._panel.draw(positions)
        else:
            self.map.png = panels.encode_png(panels.render_surface(heatmap, positions, name))
        self.marginals.png = panels.encode_png(panels.render_marginals(heatmap, alpha, positions))
        self.table.value = panels.table_html(positions)

    def _touch_whole(self) -> None:
        """A click picks the nearest keypoint; a drag moves the box, or draws one if it starts outside."""
        size = np.array(self._image.shape[1::-1], float)  # corners come as whole numbers
        start, end = (np.array(self.whole.gesture[name]) * size for name in ("from", "to"))
        if self.whole.gesture["kind"] == "click":
            return self._pick_keypoint(self.answer.to_image(self._pose), end)
        if self._before_drag is None:
            self._before_drag = self._shown_bbox.copy()
        x, y, w, h = before = self._before_drag
        is_everything = w * h > 0.9 * size.prod()
        if x <= start[0] <= x + w and y <= start[1] <= y + h and not is_everything:
            corner = np.clip(before[:2] + end - start, -before[2:] / 2, size - before[2:] / 2)
            bbox, person = np.concatenate([corner, before[2:]]), self._box
        else:
            bbox = np.concatenate([np.minimum(start, end), np.maximum(np.abs(end - start), 4)])
            known = session.best_match(bbox, self._boxes)  # who it is around; nobody has no truth
            person = Box(bbox) if known is None else self._boxes[known]
            if known is not None:
                self._frame_person(known)
        bbox[:2] -= bbox[2:] * (self.shift_x.value, self.shift_y.value)  # `_ask` adds the sliders' shift
        self._box = Box(bbox, person.truth, person.area)
        if self.whole.gesture["kind"] == "drop":
            self._before_drag = None
        self._ask()

    def _touch_crop(self) -> None:
        if self.crop.gesture["kind"] == "click":
            height, width = self.answer.crops.shape[1:3]
            place = np.array(self.crop.gesture["to"]) * (width, height)
            self._pick_keypoint(self._pose * self.answer.stride_xy, place)

    def _pick_keypoint(self, points: np.ndarray, place: np.ndarray) -> None:
        self.keypoint.value = int(np.hypot(*(points - place).T).argmin())

    def _take_path(self) -> None:
        if path := _unquoted(self.path):
            self._add(session.open_people(path))

    def _take_network(self) -> None:
        """A network more in the menu, and chosen."""
        if path := _unquoted(self.file):
            opened = session.open_networks(path)
            self._networks |= opened
            self._set(self.network, options=list(self._networks), value=next(iter(opened)))
            self._change_network()

    def _take_upload(self) -> None:
        for file in self.upload.value:
            self._add([session.PeopleOfImage(Path(file["name"]).name, bytes(file["content"]))])

    def _add(self, pictures: list[session.PeopleOfImage]) -> None:
        """New pictures into the menu, and the first of them onto the screen."""
        pictures[0].read()  # complains before the menu knows it
        known = {picture.source for picture in self._pictures}
        self._pictures += [picture for picture in pictures if picture.source not in known]
        first = [picture.source for picture in self._pictures].index(pictures[0].source)
        self._set(self.picture, options=self._picture_names(), value=first)
        self._open()


def _unquoted(field: widgets.Text) -> str:
    """The path in a field; file managers copy it with quotes."""
    return field.value.strip().strip("'\"")
