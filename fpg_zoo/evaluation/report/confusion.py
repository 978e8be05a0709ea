"""Which detection finds which object, whatever their classes, and how often each class is taken for each other.

Average precision looks at one class at a time, so that it cannot say what a wrong detection is of. Here an image's
detections are matched once, from the highest score on. Those above a threshold are matched as if the others were not
there, so one pass serves every threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_IOU = 0.5
NO_OBJECT, IGNORED = -1, -2  # in place of an object's place: a false detection, and one that does not count
STEPS = 101  # score thresholds
MOST_SHOWN = 100  # classes of a confusion
MIDDLE = 50  # the step that images are ranked at, and that the page begins with


def thresholds_of(scores: np.ndarray) -> np.ndarray:
    """The score thresholds of a report.

    Args:
        scores: of all detections; any finite numbers.

    Returns:
        (101,) float64 in equal steps: 0, 0.01, ..., 1 if all scores lie in 0..1, else from the least to the greatest.
    """
    within = not len(scores) or (scores.min() >= 0 and scores.max() <= 1)
    low, high = (0.0, 1.0) if within else (float(scores.min()), float(scores.max()))
    steps: np.ndarray = np.arange(STEPS) / (STEPS - 1)  # as 0.57 is written; 57 * 0.01 is not that
    return steps if within else low * (1 - steps) + high * steps


def steps_of(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(D,) int64: the last threshold's place that each score is not below, 0..100."""
    steps: np.ndarray = np.clip(np.searchsorted(thresholds, scores, side="right") - 1, 0, STEPS - 1)
    return steps


def match(
    ious: np.ndarray, scores: np.ndarray, labels: np.ndarray, object_labels: np.ndarray, crowds: np.ndarray
) -> np.ndarray:
    """The object that each detection of an image finds.

    Detections are taken from the highest score on, of equal scores the earlier. Each takes the free object that it
    overlaps most, whatever its class, if their IoU is at least 0.5. Of equal IoUs an object of its own class comes
    first, then the earlier. If there is none, and half of it lies in a crowd of its own class, it does not count.

    Args:
        ious: (D, G) 0..1; for a crowd, the share of the detection that lies in it, as pycocotools has it.
        scores, labels: (D,) of the detections.
        object_labels: (G,) of objects and crowds.
        crowds: (G,) bool, which of them are crowds.

    Returns:
        (D,) int64 places of objects, 0..G - 1, or `NO_OBJECT` or `IGNORED`.
    """
    object_of = np.full(len(scores), NO_OBJECT, dtype=np.int64)
    free: np.ndarray = np.where(crowds, 0.0, ious)  # of objects that are not taken
    in_crowd = np.where(crowds & (labels[:, None] == object_labels), ious, 0.0).max(axis=1, initial=0.0)
    object_of[in_crowd >= LEAST_IOU] = IGNORED
    nearest: np.ndarray = free.max(axis=1, initial=0.0)
    for place in np.argsort(-scores, kind="stable"):
        if nearest[place] < LEAST_IOU:  # before anything was taken
            continue
        most = free[place].max()
        if most < LEAST_IOU:
            continue
        best = np.flatnonzero(free[place] == most)
        own = best[object_labels[best] == labels[place]]
        object_of[place] = own[0] if len(own) else best[0]
        free[:, object_of[place]] = 0.0
    return object_of


class Matches(NamedTuple):
    """An image's detections and what they find.

    Attributes:
        steps: (D,) as of `steps_of`.
        labels: (D,) 0-based classes.
        object_of: (D,) as of `match`.
        object_labels: (G,) 0-based classes of objects and crowds.
        crowds: (G,) bool.
    """

    steps: np.ndarray
    labels: np.ndarray
    object_of: np.ndarray
    object_labels: np.ndarray
    crowds: np.ndarray

    def right(self) -> np.ndarray:
        """(D,) bool: it finds an object of its own class."""
        right: np.ndarray = self.object_of >= 0
        right[right] = self.labels[right] == self.object_labels[self.object_of[right]]
        return right

    def mistakes(self) -> int:
        """How many there are at the middle threshold, each counted once.

        Detections that find nothing, objects found as of another class, and objects not found.
        """
        above = self.steps >= MIDDLE
        nothing = int((above & (self.object_of == NO_OBJECT)).sum())
        return nothing + int((~self.crowds).sum()) - int((above & self.right()).sum())


class Confusion(NamedTuple):
    """Detections of all images, counted by what they are of and what they are taken for.

    Attributes:
        object_counts: (C,) int64, objects of each class, crowds left out.
        cells: (N, 4) int64 rows of (class of the object, class of the detection, step, number), each triple once; the
            class C of an object means that there is none. Detections that do not count are in none.
    """

    object_counts: np.ndarray
    cells: np.ndarray

    def at_least(self) -> tuple[np.ndarray, np.ndarray]:
        """Right and wrong detections at each threshold, by the class that they are detected as.

        Returns:
            Two (C, 101) int64.
        """
        classes = len(self.object_counts)
        counts = np.zeros((2, classes, STEPS), dtype=np.int64)
        object_classes, labels, steps, numbers = self.cells.T
        np.add.at(counts, ((object_classes != labels).astype(np.int64), labels, steps), numbers)
        right, wrong = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        return right, wrong

    def visible_classes(self) -> list[int]:
        """The classes that have objects or detections, in their order; of too many those with most objects."""
        seen = (self.object_counts > 0) | (np.bincount(self.cells[:, 1], minlength=len(self.object_counts)) > 0)
        order = [label for label in np.argsort(-self.object_counts, kind="stable").tolist() if seen[label]]
        return sorted(order[:MOST_SHOWN])


class ConfusionCounter:
    """Counts images as they come."""

    def __init__(self, classes: int) -> None:
        """None so far.

        Args:
            classes: how many there are.
        """
        self._object_counts = np.zeros(classes, dtype=np.int64)
        self._keys: list[np.ndarray] = []

    def add(self, matches: Matches) -> None:
        """Count an image's objects and detections."""
        classes = len(self._object_counts)
        np.add.at(self._object_counts, matches.object_labels[~matches.crowds], 1)
        counted = matches.object_of != IGNORED
        object_classes = np.full(len(matches.object_of), classes, dtype=np.int64)
        hit = matches.object_of >= 0
        object_classes[hit] = matches.object_labels[matches.object_of[hit]]
        keys = (object_classes * classes + matches.labels) * STEPS + matches.steps
        self._keys.append(keys[counted])

    def confusion(self) -> Confusion:
        """All that was counted."""
        classes = len(self._object_counts)
        keys, numbers = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._keys]), return_counts=True)
        pairs, steps = np.divmod(keys, STEPS)
        object_classes, labels = np.divmod(pairs, classes)
        return Confusion(self._object_counts, np.stack([object_classes, labels, steps, numbers], axis=1))


def rates(right: np.ndarray, wrong: np.ndarray, object_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, their harmonic mean; NaN where there is nothing to divide by.

    Args:
        right, wrong: numbers of detections, of any one shape.
        object_counts: numbers of objects, of a shape that goes with theirs.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / (right + wrong), right / object_counts, 2 * right / (right + wrong + object_counts)
