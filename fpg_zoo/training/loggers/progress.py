"""How far a run is, in plain lines, for where no terminal shows a bar: a log of SLURM's, a file."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping

from fpg_zoo.run_log import is_evaluation

_APS = ("_AP", "_AP50", "_AP75")  # how the names end of those of an evaluation's metrics that a line has


class ProgressLines:
    """A line every so many steps, and for each evaluation.

    Losses, speed and waiting are means over the steps since the line before.

    Args:
        steps: of the whole run.
        clock: gives seconds.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._clock = clock
        self._first: tuple[int, float] | None = None  # the first step of this process, and when it was done
        self._seen: list[dict[str, float]] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Count the metrics of a step for the next line; those of an evaluation are not averaged."""
        if is_evaluation(metrics):
            return
        # From the end of the first step on: it takes longer than the others.
        self._first = self._first or (step, self._clock())
        self._seen.append(
            {
                name: value
                for name, value in metrics.items()
                if name.startswith("loss") or name in ("images_per_second", "data_wait")
            }
        )

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """The line of a step, or of an evaluation after it."""
        parts = [f"step {step}/{self._steps}"]
        if is_evaluation(metrics):
            found = {name: value for name, value in metrics.items() if name != "memory_gb"}
            aps = {name: value for name, value in found.items() if name.endswith(_APS)}
            parts += [f"{name} {value:.3f}" for name, value in (aps or found).items()]
        else:
            means = {name: sum(row[name] for row in self._seen) / len(self._seen) for name in self._seen[-1]}
            self._seen.clear()
            if "epoch" in metrics:
                parts.append(f"epoch {metrics['epoch']:.2f}")
            parts += [f"{name} {mean:.4g}" for name, mean in means.items() if name.startswith("loss")]
            if "lr" in metrics:
                parts.append(f"lr {metrics['lr']:.3g}")
            if "images_per_second" in means:
                parts.append(f"{means['images_per_second']:.3g} images/s")
            if "data_wait" in means:
                parts.append(f"data wait {means['data_wait']:.0%}")
        if "memory_gb" in metrics:
            parts.append(f"{metrics['memory_gb']:.2f} GB")
        if (left := self._seconds_left(step)) is not None:
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        return "  ".join(parts)

    def _seconds_left(self, step: int) -> float | None:
        """At the pace so far, evaluations included; None after the first step and after the last."""
        if self._first is None or not self._first[0] < step < self._steps:
            return None
        first, when = self._first
        return (self._clock() - when) / (step - first) * (self._steps - step)
