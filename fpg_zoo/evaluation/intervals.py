"""How sure an AP is: intervals by the bootstrap over images (Efron, 1979), of one model and of a difference.

Detections are matched once. A resample is a weight for each image, how often it was drawn, by which its detections and
objects count. That is what pycocotools computes of as many copies of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fpg_zoo.errors import ConfigError
from fpg_zoo.files import on_terminal
from fpg_zoo.progress import tqdm

_RECALLS = np.linspace(0, 1, 101)  # at which COCO's AP reads the curve
_DEVIATIONS = 1.96  # of a normal distribution, which 95 % lie within
RESAMPLES = 1000
_NAMES = ("AP", "AP50", "AP75", "AR_1", "AR_10", "AR_100")
_MOST_DETECTIONS = (1, 10, 100)  # of an image, for recall
_LEAST_RESAMPLES = 20
_Floats = NDArray[np.float64]
_Kind = TypeVar("_Kind", bound=str)


class Interval(NamedTuple):
    """The least and the greatest value that are likely; of AP, it may reach past 0 or 1.

    Attributes:
        lower, upper: on the metric's scale.
    """

    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Matches:
    """What pycocotools matched, of 100 detections an image.

    Legend: N detections that count at some threshold, by class and then by score, the best first; T IoU thresholds, C
    classes, I images.

    Attributes:
        images: (N,) int64, the image of each detection, 0..I - 1.
        ranks: (N,) int64, its place among those of its class in the image, the best being 0.
        starts: (C + 1,) int64, where each class begins.
        positive: (T, N) bool, whether a detection finds an object.
        ignored: (T, N) bool, whether it counts neither way.
        objects: (C, I) int64, how many there are to find.
        sizes: the same of small, medium and large objects alone; empty in those.
    """

    images: NDArray[np.int64]
    ranks: NDArray[np.int64]
    starts: NDArray[np.int64]
    positive: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]
    sizes: Mapping[str, Matches] = field(default_factory=dict)


def matches_of(evaluation: Any) -> Matches:
    """What a `COCOeval` matched, after `evaluate`."""
    whole, *sizes = (_matches_of(evaluation, size) for size in range(len(evaluation.params.areaRng)))
    return replace(whole, sizes=dict(zip(evaluation.params.areaRngLbl[1:], sizes, strict=True)))


def _matches_of(evaluation: Any, size: int) -> Matches:
    """Those of one of its sizes, by number."""
    classes, sizes, number = (len(getattr(evaluation.params, name)) for name in ("catIds", "areaRng", "imgIds"))
    thresholds = len(evaluation.params.iouThrs)
    images: list[NDArray[np.int64]] = []
    ranks: list[NDArray[np.int64]] = []
    positive, ignored = ([np.zeros((thresholds, 0), dtype=bool)] for _ in range(2))
    objects = np.zeros((classes, number), dtype=np.int64)
    starts = [0]
    for category in range(classes):
        first = (category * sizes + size) * number
        found = [(place, one) for place, one in enumerate(evaluation.evalImgs[first : first + number]) if one]
        for place, one in found:
            objects[category, place] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        scores = np.concatenate([one["dtScores"] for _, one in found] or [[]])
        order = np.argsort(-scores, kind="mergesort")
        if len(order):
            left_out = np.concatenate([one["dtIgnore"] for _, one in found], axis=1).astype(bool)
            order = order[~left_out[:, order].all(axis=0)]
            ignored.append(left_out[:, order])
            positive.append(np.concatenate([one["dtMatches"] for _, one in found], axis=1)[:, order] != 0)
        owners = np.repeat([place for place, _ in found], [len(one["dtScores"]) for _, one in found])
        images.append(owners.astype(np.int64)[order])
        in_image = [np.arange(len(one["dtScores"]), dtype=np.int64) for _, one in found]
        ranks.append(np.concatenate([np.zeros(0, dtype=np.int64), *in_image])[order])
        starts.append(starts[-1] + len(order))
    return Matches(
        images=np.concatenate(images),
        ranks=np.concatenate(ranks),
        starts=np.array(starts, dtype=np.int64),
        positive=np.concatenate(positive, axis=1) & ~np.concatenate(ignored, axis=1),
        ignored=np.concatenate(ignored, axis=1),
        objects=objects,
    )


@dataclass(frozen=True, eq=False)
class _Positions:
    """Of one IoU threshold, K detections that find objects and M that do not count, by their places among the N.

    Attributes:
        true: (K,).
        classes: (K,), of each.
        ignored: (M,).
        ignored_before: (K,), how many of the ignored come before each.
        true_starts, ignored_starts: (C + 1,), where each class begins among the K and the M.
        within: by number of detections an image, which of the K are among so many.
    """

    true: NDArray[np.int64]
    classes: NDArray[np.int64]
    ignored: NDArray[np.int64]
    ignored_before: NDArray[np.int64]
    true_starts: NDArray[np.int64]
    ignored_starts: NDArray[np.int64]
    within: dict[int, NDArray[np.bool_]]


class Resampled:
    """COCO's twelve metrics of weighted images, by pycocotools' names."""

    def __init__(self, matches: Matches) -> None:
        self._whole = _OneSize(matches)
        self._sizes = {size: _OneSize(one) for size, one in matches.sizes.items()}

    def __call__(self, weights: _Floats) -> dict[str, float]:
        """The metrics where each image (I,) counts so often, a whole number; NaN without objects."""
        values = self._whole(weights)
        by_size = {size: one(weights) for size, one in self._sizes.items()}
        for metric, source in (("AP", "AP"), ("AR", "AR_100")):
            values |= {f"{metric}_{size}": one[source] for size, one in by_size.items()}
        return values


class _OneSize:
    """The metrics of `_NAMES` of weighted images, of objects of some size."""

    def __init__(self, matches: Matches) -> None:
        self._matches = matches
        self._thresholds = [
            self._positions(row, out) for row, out in zip(matches.positive, matches.ignored, strict=True)
        ]

    def _positions(self, positive: NDArray[np.bool_], ignored: NDArray[np.bool_]) -> _Positions:
        true, left_out = np.flatnonzero(positive), np.flatnonzero(ignored)
        starts = self._matches.starts
        return _Positions(
            true=true,
            classes=np.searchsorted(starts, true, side="right") - 1,
            ignored=left_out,
            ignored_before=np.searchsorted(left_out, true),
            true_starts=np.searchsorted(true, starts),
            ignored_starts=np.searchsorted(left_out, starts),
            within={most: self._matches.ranks[true] < most for most in _MOST_DETECTIONS},
        )

    def __call__(self, weights: _Floats) -> dict[str, float]:
        """The metrics where each image (I,) counts so often, a whole number; NaN without objects."""
        matches = self._matches
        objects = matches.objects @ weights
        there = objects > 0
        if not there.any():
            return dict.fromkeys(_NAMES, np.nan)
        of_detection = weights[matches.images]
        seen = _summed(of_detection)
        needed = _needed(objects)
        aps = np.empty((len(self._thresholds), int(there.sum())))
        recalls = {most: np.empty_like(aps) for most in _MOST_DETECTIONS}
        for row, positions in enumerate(self._thresholds):
            of_true = of_detection[positions.true]
            hits = _summed(of_true)
            out = _summed(of_detection[positions.ignored])
            first, end = positions.true_starts[:-1], positions.true_starts[1:]
            found = hits[1:] - hits[first][positions.classes]
            counted = seen[positions.true + 1] - seen[matches.starts[:-1]][positions.classes]
            counted -= out[positions.ignored_before] - out[positions.ignored_starts[:-1]][positions.classes]
            precision = np.divide(found, counted, out=np.zeros_like(found), where=counted > 0)
            # One pass from the end, in which each class lies above those after it.
            above = 2.0 * (len(objects) - positions.classes)
            envelope = np.maximum.accumulate((precision + above)[::-1])[::-1] - above
            places = np.searchsorted(hits[1:], (hits[first][:, None] + needed).ravel()).reshape(needed.shape)
            places = np.maximum(places, first[:, None])
            reached = places < end[:, None]
            read = np.append(envelope, 0.0)[np.where(reached, places, len(envelope))]
            aps[row] = (read.sum(axis=1) / len(_RECALLS))[there]
            for most, within in positions.within.items():
                of_class = np.bincount(positions.classes, of_true * within, minlength=len(objects))
                recalls[most][row] = (of_class[there] / objects[there]) if len(of_true) else 0.0
        values = (aps.mean(), aps[0].mean(), aps[5].mean(), *(one.mean() for one in recalls.values()))
        return {name: float(value) for name, value in zip(_NAMES, values, strict=True)}


def _summed(values: _Floats) -> _Floats:
    """The sums of the first 0, 1, 2, ... values."""
    return np.concatenate(([0.0], np.cumsum(values)))


def _needed(objects: _Floats) -> _Floats:
    """(C, 101): how many of so many objects must be found for each recall, as pycocotools compares them."""
    most = np.maximum(objects, 1.0)[:, None]
    needed = np.ceil(_RECALLS * most)
    needed -= (needed - 1) / most >= _RECALLS
    needed += needed / most < _RECALLS
    return needed


def check_draws(resamples: int, seed: int) -> None:
    """Refuse numbers that nothing can be drawn by.

    Raises:
        ConfigError: fewer than 20 resamples, or a seed below 0.
    """
    if resamples < _LEAST_RESAMPLES:
        raise ConfigError(f"resamples={resamples}: a spread takes at least {_LEAST_RESAMPLES}; {RESAMPLES} are usual")
    if seed < 0:
        raise ConfigError(f"seed={seed}: it takes a whole number of at least 0")


def intervals(
    matches: Mapping[_Kind, Matches], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[_Kind, dict[str, Interval]]:
    """95 % intervals of COCO's metrics.

    The images count as drawn from all that the data set stands for. AP of few images is greater than that of many, as
    its curve is drawn over the best points of either side. A resample, which has fewer different images, is greater
    again, by about as much. So the interval lies around the value less that, 1.96 standard deviations of the resamples
    to each side (the normal interval with the bootstrap's estimate of bias, of Efron and Tibshirani, 1993).

    Args:
        matches: of each kind, of the same images.
        resamples: how many.
        seed: of the draws. The same seed draws the same images.

    Returns:
        Of each kind, of each metric that there are objects for.
    """
    drawn = _resampled(matches, resamples, seed)
    values = {kind: Resampled(one)(np.ones(one.objects.shape[1])) for kind, one in matches.items()}
    return {kind: _intervals(values[kind], drawn[kind]) for kind in matches}


def difference_intervals(
    first: Mapping[_Kind, Matches], second: Mapping[_Kind, Matches], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[_Kind, dict[str, Interval]]:
    """95 % intervals of second less first, of two models on the same images: each resample is drawn for both."""
    before, after = (_resampled(matches, resamples, seed) for matches in (first, second))
    found: dict[_Kind, dict[str, Interval]] = {}
    for kind in first:
        ones = np.ones(first[kind].objects.shape[1])
        values, others = Resampled(first[kind])(ones), Resampled(second[kind])(ones)
        found[kind] = _intervals(
            {name: others[name] - values[name] for name in values},
            {name: after[kind][name] - before[kind][name] for name in values},
        )
    return found


def _resampled(matches: Mapping[_Kind, Matches], resamples: int, seed: int) -> dict[_Kind, dict[str, _Floats]]:
    random = np.random.default_rng(seed)
    images = next(iter(matches.values())).objects.shape[1]
    metrics = {kind: Resampled(one) for kind, one in matches.items()}
    values: dict[_Kind, dict[str, list[float]]] = {kind: {} for kind in matches}
    for _ in tqdm(range(resamples), desc="resamples", disable=not on_terminal(), leave=False):
        weights = random.multinomial(images, np.full(images, 1 / images)).astype(np.float64)
        for kind, metric in metrics.items():
            for name, value in metric(weights).items():
                values[kind].setdefault(name, []).append(value)
    return {kind: {name: np.array(one) for name, one in of_kind.items()} for kind, of_kind in values.items()}


def _intervals(values: Mapping[str, float], drawn: Mapping[str, _Floats]) -> dict[str, Interval]:
    return {name: _around(value, drawn[name]) for name, value in values.items() if not np.isnan(value)}


def _around(value: float, resampled: _Floats) -> Interval:
    center = 2 * value - float(np.nanmean(resampled))
    reach = _DEVIATIONS * float(np.nanstd(resampled))
    return Interval(center - reach, center + reach)
