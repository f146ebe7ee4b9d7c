"""What the explorers are made of: figures of one heatmap, a picture to click on, and their controls."""

import html
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import anywidget
import cv2
import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import traitlets
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.draw import METHOD_COLOURS, STYLE, InlineFigure, draw_box, draw_pose, heat_layer
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.explore import session
from hrnetpp_lib.explore.session import TRUTH, Position
from hrnetpp_lib.pose.keypoints import Skeleton

Mark = namedtuple("Mark", "label marker size colour")  # how a position is called and drawn; size in points
MARKS = {  # markers differ too, for print in grey; sizes, so that equal positions are all seen
    "arg_max": Mark("arg-max", "s", 14, "#56B4E9"),
    "quarter_offset": Mark("quarter offset", "D", 9, METHOD_COLOURS["heatmap"]),
    "soft_argmax": Mark("soft-argmax", "o", 6, METHOD_COLOURS["regression"]),
    TRUTH: Mark("ground truth", "*", 9, "#CC79A7"),
}
PANEL_IN = (2.8, 2.8)  # four stand side by side in a window of 1280 px if the crop is 3:4
_DPI = 100
_TABLE_CSS = (
    "<style>table.positions td, table.positions th {padding: 2px 10px; text-align: right; font-size: 13px}"
    "table.positions td:first-child {text-align: left}</style>"
)
POSE_THRESHOLD = 0.05  # keypoints that score no more are not drawn


def _panel(title: str, place: tuple[float, ...], **options: object) -> tuple[Figure, Axes]:
    """A small figure with one axes at a fixed place: automatic layout costs more time than drawing."""
    figure = InlineFigure(figsize=PANEL_IN)
    return figure, figure.add_axes(place, title=title, **options)


def _picture_panel(
    inches: float, layers: list[np.ndarray], poses: list[np.ndarray | None], skeleton: Skeleton, width: float
) -> tuple[Figure, Axes]:
    """A figure filled by pictures of one size, so many inches per px, with the truth and a pose over them."""
    truth, pose = poses
    size = np.array(layers[0].shape[1::-1])
    figure = InlineFigure(figsize=np.maximum(inches * size, 0.05))  # never without any width or height
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    for layer in layers:
        ax.imshow(layer)
    ax.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))
    if truth is not None:
        labelled = truth[:, 2] > 0
        segments = [truth[[a, b], :2] for a, b in skeleton.limbs if labelled[a] and labelled[b]]
        ax.add_collection(LineCollection(segments, colors="white", lw=3.5, alpha=0.55, capstyle="round"))
        ax.plot(*truth[labelled, :2].T, "*", ms=6, mfc=MARKS[TRUTH].colour, mec="white", mew=0.6, ls="")
    draw_pose(ax, pose, skeleton, POSE_THRESHOLD, width)
    return figure, ax


def _ticks(heatmap: np.ndarray) -> dict[str, np.ndarray]:
    """Four along each axis; each costs a millisecond, and a slider's move redraws them all."""
    yticks, xticks = (np.linspace(0, cells - 1, 4).round().astype(int) for cells in heatmap.shape)
    return {"xticks": xticks, "yticks": yticks}


@mpl.rc_context(STYLE)
def render_box(
    image: np.ndarray, bbox_xywh: np.ndarray, pose: np.ndarray, skeleton: Skeleton, truth: np.ndarray | None
) -> Figure:
    """A (height, width, 3) RGB picture with the box and the pose, (K, 3) in its px, over the true one."""
    # A tower must not fill the page.
    inches = min(PANEL_IN[0] / image.shape[1], 1.5 * PANEL_IN[1] / image.shape[0])
    figure, ax = _picture_panel(inches, [image], [truth, pose], skeleton, width=1.5)
    draw_box(ax, bbox_xywh)
    return figure


@mpl.rc_context(STYLE)
def render_crop(
    crop: np.ndarray,
    heatmap: np.ndarray,
    blend: float,
    pose_input: np.ndarray,
    skeleton: Skeleton,
    keypoint: int,
    truth_input: np.ndarray | None = None,
) -> Figure:
    """A (h, w, 3) RGB crop, the (H, W) heatmap of a keypoint, which is ringed, and (K, 3) poses in its px."""
    layers, inches = [crop, heat_layer(heatmap, crop.shape[:2], blend)], PANEL_IN[1] / crop.shape[0]
    figure, ax = _picture_panel(inches, layers, [truth_input, pose_input], skeleton, width=1.2)
    ax.plot(*pose_input[keypoint, :2], "o", ms=13, mfc="none", mec="white", mew=1.8)
    return figure


@mpl.rc_context(STYLE)
def render_contour(heatmap: np.ndarray, positions: Sequence[Position], name: str) -> Figure:
    """The (H, W) heatmap of the keypoint of that name with contours, and where each method puts it."""
    figure, ax = _panel(f"{name}, peak {heatmap.max():.2f}", (0.13, 0.31, 0.84, 0.61))
    ax.imshow(heatmap, cmap="Greys_r", vmin=min(0.0, float(heatmap.min())), vmax=max(0.2, heatmap.max()))
    if heatmap.max() > heatmap.min():
        levels = np.linspace(heatmap.min(), heatmap.max(), 7)[1:-1]
        ax.contour(heatmap, levels=levels, colors="#F0E442", linewidths=0.6)
    for position in positions:
        label, marker, size, colour = MARKS[position.source]
        ax.plot(*position.xy_heatmap, marker, label=label, ms=size, mfc="none", mec=colour, mew=2, zorder=5)
    # Positions outside the map, as the truth may have, must not shrink it.
    frame = {"xlim": (-0.5, heatmap.shape[1] - 0.5), "ylim": (heatmap.shape[0] - 0.5, -0.5)}
    ax.set(xlabel="x (heatmap px)", ylabel="y (heatmap px)", **_ticks(heatmap), **frame)
    ax.grid(False)
    figure.legend(loc="lower center", ncols=2, fontsize=7, markerscale=0.6)
    return figure


class ContourPanel:
    """`render_contour` as a PNG whose positions move without drawing the rest, most of the work, again."""

    def __init__(self, heatmap: np.ndarray, positions: Sequence[Position], name: str):
        figure = render_contour(heatmap, positions, name)
        (self._ax,) = figure.axes
        for mark in self._ax.lines:
            mark.set_animated(True)  # left out of what is drawn once
        self._canvas = _paint(figure)
        self._background = self._canvas.copy_from_bbox(figure.bbox)

    def draw(self, positions: Sequence[Position]) -> bytes:
        """The PNG with these positions, which are of the same methods as before."""
        self._canvas.restore_region(self._background)
        for mark, position in zip(self._ax.lines, positions, strict=True):
            mark.set_data(*position.xy_heatmap[:, None])
            self._ax.draw_artist(mark)
        return encode_image(self._canvas.buffer_rgba())


@mpl.rc_context(STYLE)
def render_surface(heatmap: np.ndarray, positions: Sequence[Position], name: str) -> Figure:
    """The heatmap as a surface, with the positions marked on its floor; arguments as `render_contour`."""
    figure, ax = _panel(f"{name}, peak {heatmap.max():.2f}", (0.0, 0.02, 0.92, 0.9), projection="3d")
    ax.computed_zorder = False  # positions stay in sight
    y, x = np.mgrid[: heatmap.shape[0], : heatmap.shape[1]]
    ax.plot_surface(x, y, heatmap, cmap="inferno", rcount=32, ccount=32, linewidth=0, antialiased=False)
    floor, top = min(0.0, float(heatmap.min())), max(0.2, float(heatmap.max()) * 1.1)
    limits = np.array(heatmap.shape[::-1]) - 1
    for position in positions:
        (x, y), (_, marker, size, colour) = position.xy_heatmap, MARKS[position.source]
        if 0 <= x <= limits[0] and 0 <= y <= limits[1]:  # a stem outside the map would stand anywhere
            ax.plot([x, x], [y, y], [floor, top], lw=1, color=colour, zorder=10)
            ax.plot([x], [y], [top], marker, ms=size, mfc="none", mew=2, color=colour, zorder=10)
    ax.set(xlim=(0, limits[0]), ylim=(limits[1], 0), zlim=(floor, top), **_ticks(heatmap))
    ax.set(xlabel="x", ylabel="y")
    ax.xaxis.labelpad = ax.yaxis.labelpad = -8
    ax.tick_params(labelsize=6, pad=-2)
    return figure


@mpl.rc_context(STYLE)
def render_marginals(heatmap: np.ndarray, alpha: float, positions: Sequence[Position]) -> Figure:
    """The marginals of softmax(alpha * heatmap) along x and y: what soft-argmax takes the mean of."""
    logits = alpha * heatmap.astype(np.float64)
    mass = np.exp(logits - logits.max())
    mass /= mass.sum()
    figure, above = _panel(f"marginals of softmax({alpha:.3g} H)", (0.19, 0.64, 0.78, 0.27))
    below = figure.add_axes((0.19, 0.17, 0.78, 0.27))
    colours = [MARKS[position.source].colour for position in positions]
    for axis, (ax, name) in enumerate(((above, "x"), (below, "y"))):
        values = mass.sum(axis=axis)
        edges = np.arange(len(values) + 1) - 0.5
        ax.stairs(values, edges, fill=True, color=METHOD_COLOURS["regression"], alpha=0.45)
        top = max(0.2, float(values.max()))
        ax.vlines([p.xy_heatmap[axis] for p in positions], 0, 1.05 * top, colors=colours, lw=1.6)
        ax.set(xlim=(-0.5, len(values) - 0.5), xticks=_ticks(heatmap)[f"{name}ticks"], ylim=(0, 1.05 * top))
        ax.set(xlabel=f"{name} (heatmap px)", ylabel="mass", yticks=(0, round(top, 2)))
        ax.grid(False)
    return figure


def table_html(positions: Sequence[Position]) -> str:
    """Positions, errors and similarities as an HTML table; dashes where there is no truth."""
    heads = ("", "x, y (heatmap px)", "error (heatmap px)", "error (input px)", "similarity", "OKS")
    rows = []
    for p in positions:
        numbers = ((p.error_heatmap, 2), (p.error_input, 2), (p.similarity, 3), (p.oks, 3))
        cells = ["–" if np.isnan(value) else f"{value:.{digits}f}" for value, digits in numbers]
        rows.append((p.source, "{:.2f}, {:.2f}".format(*p.xy_heatmap), *cells))
    if TRUTH not in [p.source for p in positions]:
        rows.append((TRUTH, "not labelled", *"––––"))  # so that what stands below does not jump
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    for source, *cells in rows:
        mark = f'<span style="color:{MARKS[source].colour}">&#9632;</span> {MARKS[source].label}'
        lines.append("".join(f"<td>{cell}</td>" for cell in (mark, *cells)))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'{_TABLE_CSS}<table class="positions">{body}</table>'


def _paint(figure: Figure) -> FigureCanvasAgg:
    """A figure as pixels."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def encode_png(figure: Figure) -> bytes:
    """A figure as a PNG file; several times as fast as savefig, and larger."""
    return encode_image(_paint(figure).buffer_rgba())


def encode_image(image: np.ndarray) -> bytes:
    """(h, w, 3 or 4) uint8 RGB or RGBA as a PNG file without transparency."""
    pixels = cv2.cvtColor(np.asarray(image)[:, :, :3], cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


_JAVASCRIPT = """
export default {
  render({ model, el }) {
    const image = document.createElement("img");
    image.draggable = false;
    image.style.cssText = "max-width: 100%; display: block; cursor: crosshair; touch-action: none";
    el.append(image);
    let address = null, from = null, sent = 0;

    const show = () => {
      if (address) URL.revokeObjectURL(address);
      address = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
      Object.assign(image, { src: address, alt: model.get("alt") });
    };
    const place = (event) => {
      const frame = image.getBoundingClientRect();
      return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    };
    const moved = ([x, y]) =>
      Math.hypot((x - from[0]) * image.clientWidth, (y - from[1]) * image.clientHeight) > 4;
    const tell = (kind, to) => {
      sent = performance.now();
      model.set("gesture", { kind, from, to, number: model.get("gesture").number + 1 });
      model.save_changes();
    };
    image.onpointerdown = (event) => {
      from = place(event);
      image.setPointerCapture(event.pointerId);
    };
    image.onpointermove = (event) => {
      if (from && moved(place(event)) && performance.now() - sent > 150) tell("drag", place(event));
    };
    image.onpointerup = image.onpointercancel = (event) => {
      const still = event.type === "pointerup" && from && !moved(place(event));
      if (from) tell(still ? "click" : "drop", place(event));
      from = null;
    };
    model.on("change:png", show);
    show();
    return () => URL.revokeObjectURL(address);
  },
};
"""


class ClickableImage(anywidget.AnyWidget):
    """A PNG that says in `alt` what it shows, and what the mouse did on it.

    A gesture is a 'click', 'drag' (under way) or 'drop' (its end), from and to (x, y) in shares of the size.
    """

    _esm = _JAVASCRIPT
    png = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    gesture = traitlets.Dict({"kind": "", "from": [0, 0], "to": [0, 0], "number": 0}).tag(sync=True)


class Explorer(widgets.VBox):
    """A menu of pictures, a strip of people and a message, in which all that cannot be done is said."""

    _LABEL_WIDTH = "90px"

    def __init__(self, people: PersonTable | Path | str | Sequence[Path | str]):
        super().__init__()
        self._pictures, self._listening = session.open_people(people), True
        self.picture = self._menu(self._picture_names(), "picture")
        self.strip = ClickableImage(alt="the people of the picture; click one")
        self.message = widgets.HTML(layout=widgets.Layout(min_height="22px"))
        self._on(self._pick_person, self.strip)

    def _picture_names(self) -> list[tuple[str, int]]:
        return [(picture.name, i) for i, picture in enumerate(self._pictures)]

    def _pick_person(self) -> None:
        if self.strip.gesture["kind"] == "click":
            people = len(self._boxes)
            self._choose_person(min(max(int(self.strip.gesture["to"][0] * people), 0), people - 1))

    def _frame_person(self, person: int) -> None:
        self.strip.png = encode_image(session.thumbnails(self._image, self._boxes, person))

    def _arrange(self, *rows: Sequence[widgets.Widget]) -> None:
        wrap = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="6px 14px")
        self.children = [widgets.HBox(row, layout=wrap) for row in rows]

    def _look(self, label: str) -> dict[str, object]:
        """Of every menu and slider."""
        style = {"description_width": self._LABEL_WIDTH}
        return {"description": label, "layout": widgets.Layout(width="330px"), "style": style}

    def _menu(self, options: Sequence[object], label: str) -> widgets.Dropdown:
        return widgets.Dropdown(options=options, **self._look(label))

    def _slider(self, value: float, low: float, high: float, step: float, label: str) -> widgets.FloatSlider:
        return widgets.FloatSlider(value, min=low, max=high, step=step, **self._look(label))

    def _on(self, action: Callable[[], None], *controls: widgets.Widget) -> None:
        """What happens when the value of a control changes, or the mouse does something on a picture."""
        for control in controls:
            trait = "gesture" if isinstance(control, ClickableImage) else "value"
            control.observe(lambda _change: self._listening and self._try(action), trait)

    def _try(self, action: Callable[[], None]) -> None:
        self.message.value = ""
        try:
            action()
        except HrnetppError as error:
            self.message.value = f"<b style='color:#D55E00'>{html.escape(str(error))}</b>"

    def _set(self, control: widgets.Widget, **traits: object) -> None:
        """Give a control's traits values, in this order, without an answer."""
        self._listening = False
        for name, value in traits.items():
            setattr(control, name, value)
        self._listening = True


def keypoint_names(skeleton: Skeleton) -> list[tuple[str, int]]:
    """The options of a menu of keypoints."""
    return [(name.replace("_", " "), k) for k, name in enumerate(skeleton.names)]
