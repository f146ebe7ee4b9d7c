"""A picture to click and drag on; Jupyter's own image widget tells nobody where the mouse is."""

import anywidget
import traitlets

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
      image.src = address;
      image.alt = model.get("alt");
    };
    const place = (event) => {
      const frame = image.getBoundingClientRect();
      return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    };
    const tell = (event, kind) => {
      sent = performance.now();
      model.set("gesture", { kind, from, to: place(event), number: model.get("gesture").number + 1 });
      model.save_changes();
    };
    const moved = (event) => {
      const to = place(event), frame = image.getBoundingClientRect();
      return Math.hypot((to[0] - from[0]) * frame.width, (to[1] - from[1]) * frame.height) > 4;
    };

    image.addEventListener("pointerdown", (event) => {
      from = place(event);
      image.setPointerCapture(event.pointerId);
    });
    image.addEventListener("pointermove", (event) => {
      if (from && moved(event) && performance.now() - sent > 150) tell(event, "drag");
    });
    image.addEventListener("pointerup", (event) => {
      if (from) tell(event, moved(event) ? "drop" : "click");
      from = null;
    });
    image.addEventListener("pointercancel", (event) => {
      if (from) tell(event, "drop");
      from = null;
    });
    model.on("change:png", show);
    show();
    return () => URL.revokeObjectURL(address);
  },
};
"""


class Picture(anywidget.AnyWidget):
    """A PNG, and what the mouse did on it.

    Attributes:
        png: The file's bytes.
        alt: What it shows, for those who do not see it.
        gesture: kind ('click', 'drag' under way, 'drop' at its end), from and to as (x, y) in shares of width
            and height, and a running number. Observe it.
    """

    _esm = _JAVASCRIPT
    png = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    gesture = traitlets.Dict({"kind": "", "from": [0, 0], "to": [0, 0], "number": 0}).tag(sync=True)
