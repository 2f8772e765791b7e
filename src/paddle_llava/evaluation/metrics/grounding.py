"""How well a box that an answer names fits the true one: RefCOCO's accuracy at IoU 0.5, and the mean IoU."""

from __future__ import annotations

from collections.abc import Sequence

from paddle_llava.processing.boxes import Box, box_iou, find_boxes, in_picture, padded_frame

THRESHOLD = 0.5


def answered_box(answer: str, width: int, height: int, frame: Box | None = None) -> Box | None:
    """The first box of an answer in pixels of its `width` x `height` picture; None when it names none. It is a fraction
    of `frame`, by default of the padded square."""
    boxes = find_boxes(answer)
    return in_picture(boxes[0], frame or padded_frame(width, height)) if boxes else None


def answer_iou(answer: str, truth: Box, width: int, height: int, frame: Box | None = None) -> float:
    """IoU of the answer's first box with `truth` (x1, y1, x2, y2 in pixels of the picture); 0 when it names none."""
    box = answered_box(answer, width, height, frame)
    return 0.0 if box is None else box_iou(box, truth)


def grounding_scores(ious: Sequence[float]) -> dict[str, float]:
    """`accuracy`, the share of IoUs of at least 0.5, and `mean_iou`; 0 to 1."""
    count = max(len(ious), 1)
    return {"accuracy": sum(iou >= THRESHOLD for iou in ious) / count, "mean_iou": sum(ious) / count}
