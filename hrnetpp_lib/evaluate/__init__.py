"""From crops to metrics and Table 1; the metrics themselves can be had from the room's door."""

from hrnetpp_lib.evaluate.metrics import ai_challenger_ap, bbox_ap, coco_ap, oks, oks_nms, rescore

__all__ = ["ai_challenger_ap", "bbox_ap", "coco_ap", "oks", "oks_nms", "rescore"]
