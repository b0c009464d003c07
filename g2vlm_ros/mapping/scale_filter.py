# SPDX-License-Identifier: Apache-2.0
"""Metres per map unit over the windows of a map: who is believed, how much, and who is not.

Each source of scale has a filter of its own, which also learns how far its evidence scatters.
Sources that agree are weighed by their variances; where they contradict each other, the most
trusted ones are believed and the others reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.mapping.scale_measurements import MIN_STD, TRUST, VIEW_NOISE, ScaleMeasurement
from g2vlm_ros.records import ScaleSource

GATE = 3.0
PATIENCE = 3
"""Evidence that contradicts its source so many times in a row, but not itself, is believed."""
SCATTER_WINDOWS = 8
"""Windows after which the scatter that is seen counts as much as the one assumed."""
MIN_DRIFT = 0.005
"""Of the logarithm of the unit from window to window."""


@dataclass(frozen=True)
class ScaleEstimate:
    """What is known of the map's unit."""

    metres_per_unit: float
    """Metres per map unit; NaN while nothing is known."""
    relative_std: float
    """NaN while nothing is known."""
    source: ScaleSource
    """One of TRUST, the one that weighs most; or NONE."""
    jump: float
    """New over old estimate where it changed by more than its own deviation; else 1."""
    refused: int
    """Pieces of evidence in a row that contradict their source's others and were left out."""
    clash: str = ""
    """The sources that contradict the believed ones and are not used, in words; or ""."""
    confirmed: bool = False
    """Whether a believed source has confirmed itself."""
    newest: ScaleMeasurement | None = None
    """What the newest window alone says by the sources that are believed; None for nothing."""


class _Source:
    """What one source has said so far: a Kalman filter on the logarithm of metres per map unit.

    Evidence further off than GATE deviations is refused until PATIENCE pieces in a row agree.
    """

    def __init__(self, name: str):
        self.name = name
        self.log, self.variance = np.nan, np.inf
        self.scatter, self._windows = 1.0, 0
        self.refused: list[float] = []
        self.pieces = 0 if name == ScaleSource.ODOMETRY else PATIENCE
        """Taken in so far, less PATIENCE for each refused. As many confirm odometry, which hangs
        on two poses; what hangs on many points, or was given, needs none."""

    def update(self, measured: float, std: float) -> bool:
        """Whether a piece of evidence was taken in."""
        if np.isinf(self.variance):
            self.log, self.variance, self.pieces = measured, std**2, self.pieces + 1
            return True
        surprise = measured - self.log
        expected = self.variance + std**2
        squared = surprise**2 / (expected * self.scatter)
        self._learn(min(squared, GATE**2))
        if squared > GATE**2:
            self.refused = [*self.refused, measured][-PATIENCE:]
            agree = np.ptp(self.refused) <= GATE * np.sqrt(2 * self.scatter) * std
            self.pieces = max(self.pieces - PATIENCE, 0)
            if len(self.refused) < PATIENCE or not agree:
                return False
            self.log, self.variance, self.refused = float(np.mean(self.refused)), std**2, []
            self.pieces = 0
            return True
        gain = self.variance / expected
        self.log += gain * surprise
        self.variance = max((1 - gain) * self.variance, MIN_STD[self.name] ** 2)
        self.refused, self.pieces = [], self.pieces + 1
        return True

    @property
    def confirmed(self) -> bool:
        return self.pieces >= PATIENCE

    @property
    def spread(self) -> float:
        """Variance of the logarithm with the scatter that was seen."""
        return self.variance * self.scatter

    def _learn(self, squared: float) -> None:
        """How far the evidence scatters, as a multiple of the variance that is assumed."""
        self._windows = min(self._windows + 1, SCATTER_WINDOWS)
        weight = 1 / (SCATTER_WINDOWS + self._windows)
        self.scatter = max(1.0, self.scatter + weight * self.scatter * (squared - 1.0))


class ScaleFilter:
    """Metres per map unit over the windows of one map.

    Each source has a filter of its own. Those that agree are weighed by their variances; one that
    contradicts more trusted ones by more than GATE deviations is not believed but reported. A
    source has to confirm itself by PATIENCE pieces of evidence before it can overrule others.
    """

    def __init__(self) -> None:
        self._sources: dict[ScaleSource, _Source] = {}

    def copy(self) -> ScaleFilter:
        """A filter that takes evidence in without this one."""
        other = ScaleFilter()
        other._sources = {name: copy(source) for name, source in self._sources.items()}
        return other

    @property
    def view_noise(self) -> float:
        """Error of a view's position, as a fraction of the range, by the scatter of odometry."""
        odometry = self._sources.get(ScaleSource.ODOMETRY)
        return VIEW_NOISE * (np.sqrt(odometry.scatter) if odometry else 1.0)

    def update(
        self,
        measurements: Sequence[ScaleMeasurement],
        map_per_window: float,
        drift: float = MIN_DRIFT,
    ) -> ScaleEstimate:
        """Take the measurements of a window in.

        map_per_window: map units per unit of the window. drift: standard deviation of the
        logarithm of the unit that the window took over from the one before.
        """
        before = self.belief()
        for source in self._sources.values():
            if source.name is not ScaleSource.MAP:
                source.variance += max(drift, MIN_DRIFT) ** 2
        updates = []
        for each in measurements:
            source = self._sources.setdefault(each.source, _Source(each.source))
            measured = float(np.log(each.metres_per_unit / map_per_window))
            if source.update(measured, each.relative_std):
                updates.append(
                    (source, measured, each.relative_std * float(np.sqrt(source.scatter)))
                )
        belief = self.belief()
        change = np.log(belief.metres_per_unit / before.metres_per_unit)
        jump = float(np.exp(change)) if abs(change) > before.relative_std else 1.0
        return replace(belief, jump=jump, newest=self._newest(updates, belief, map_per_window))

    def belief(self) -> ScaleEstimate:
        """What is known now; nothing has just jumped."""
        believed = self._believed()
        if not believed:
            return ScaleEstimate(float("nan"), float("nan"), ScaleSource.NONE, 1.0, 0)
        weights = np.array([1 / each.spread for each in believed])
        log = weights @ [each.log for each in believed] / weights.sum()
        best = believed[int(weights.argmax())].name
        refused = max(len(each.refused) for each in believed)
        names = {each.name for each in self._sources.values() if each not in believed}
        clash = ", ".join(name for name in TRUST if name in names)
        std = 1 / np.sqrt(weights.sum())
        sure = any(each.confirmed for each in believed)
        return ScaleEstimate(float(np.exp(log)), float(std), best, 1.0, refused, clash, sure)

    def contradicts(self, other: ScaleFilter, per_unit: float) -> bool:
        """Whether another map, with `per_unit` units of this one in its own, has other metres."""
        mine, theirs = self.belief(), other.belief()
        if np.isnan(mine.relative_std) or np.isnan(theirs.relative_std):
            return False
        off = np.log(theirs.metres_per_unit / per_unit / mine.metres_per_unit)
        return bool(abs(off) > GATE * np.hypot(mine.relative_std, theirs.relative_std))

    def rescaled(self, factor: float) -> None:
        """The map's unit shrank: lengths in map units became `factor` times as many."""
        for source in self._sources.values():
            source.log -= float(np.log(factor))
            source.refused = [log - float(np.log(factor)) for log in source.refused]

    def _ranked(self) -> list[_Source]:
        """The most trusted first, and last what has not confirmed itself."""
        return sorted(self._sources.values(), key=lambda s: (not s.confirmed, TRUST.index(s.name)))

    def _believed(self) -> list[_Source]:
        """The sources that do not contradict those before them."""
        believed: list[_Source] = []
        for source in self._ranked():
            weights = np.array([1 / each.spread for each in believed])
            if believed:
                log = weights @ [each.log for each in believed] / weights.sum()
                variance = 1 / weights.sum() + source.spread
                if (source.log - log) ** 2 > GATE**2 * variance:
                    continue
            believed.append(source)
        return believed

    def _newest(
        self,
        updates: Sequence[tuple[_Source, float, float]],
        belief: ScaleEstimate,
        map_per_window: float,
    ) -> ScaleMeasurement | None:
        """What tells this window from the others, by (source, logarithm, deviation).

        Only how a piece differs from what its source says on the whole: what a source is off by
        in all windows the belief has weighed already.
        """
        believed = self._believed()
        updates = [each for each in updates if each[0] in believed]
        if not updates:
            return None
        sources, measured, stds = zip(*updates, strict=True)
        weights = np.array(stds) ** -2.0
        apart = weights @ (np.array(measured) - [s.log for s in sources]) / weights.sum()
        scale = belief.metres_per_unit * map_per_window * float(np.exp(apart))
        best = sources[int(weights.argmax())].name
        return ScaleMeasurement(scale, float(weights.sum() ** -0.5), best)
