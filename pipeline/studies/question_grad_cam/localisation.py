"""How often does a pair's map fall on the right object, for each n and variant?"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from pipeline.studies.question_grad_cam.masses import located
from pipeline.studies.question_grad_cam.pairs import Pairs
from pipeline.studies.question_grad_cam.settings import BLIND, PLAIN, Setting
from pipeline.studies.summary import Bootstrap

Maps = Mapping[int, np.ndarray]
"""Question -> map."""


@dataclass(frozen=True)
class Measured:
    """Every map of every pair, a column a setting."""

    settings: Sequence[Setting]
    pairs: Pairs
    right: np.ndarray
    """``(2 * pair, setting)``, the maps of a pair next to one another; as ``located`` has it."""
    inside: np.ndarray
    """Share of the mass on the question's own object, NaN without mass."""
    empty: np.ndarray
    """1 where a map has no mass."""
    rho: np.ndarray
    """``(pair, setting)``: Spearman's rho of the pair's two maps; NaN where one is constant."""

    @cached_property
    def maps_images(self) -> np.ndarray:
        """Each map's image: the clusters of ``right``, ``inside`` and ``empty``."""
        return self.pairs.sides["image_id"].to_numpy()

    @cached_property
    def images(self) -> np.ndarray:
        """Each pair's image."""
        return self.pairs.frame["image_id"].to_numpy()

    @cached_property
    def both(self) -> np.ndarray:
        """1 where both maps of a pair fall on their own object, ``(pair, setting)``."""
        two = self.right.reshape(len(self.images), 2, -1)
        return np.where(np.isnan(two).any(axis=1), np.nan, (two == 1).all(axis=1))

    @property
    def plain(self) -> int | None:
        """Grad-CAM's column."""
        return next((i for i, s in enumerate(self.settings) if s.variant == PLAIN), None)


def measure(settings: Sequence[Setting], maps: Sequence[Maps], pairs: Pairs) -> Measured:
    """``maps``: one of each setting."""
    found = [located(own, pairs) for own in maps]

    def columns(name: str) -> np.ndarray:
        return np.stack([frame[name].to_numpy(float) for frame in found], axis=1)

    rho = np.stack([pair_correlations(own, pairs) for own in maps], axis=1)
    return Measured(settings, pairs, columns("right"), columns("own"), columns("empty"), rho)


def pair_correlations(maps: Maps, pairs: Pairs) -> np.ndarray:
    """Spearman's rho between the two maps of each pair, cell by cell, average ranks; NaN where a
    map is missing or constant."""
    couples = list(zip(pairs.frame["first"], pairs.frame["second"], strict=True))
    there = [i for i, couple in enumerate(couples) if maps.keys() >= set(couple)]
    rho = np.full(len(couples), np.nan)
    if there:
        sides = ([maps[couples[i][side]].ravel() for i in there] for side in (0, 1))
        rho[there] = spearman(*map(np.stack, sides))
    return rho


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rho of the rows of two arrays ``(n, k)``: ``(n,)``; NaN where one is constant."""
    one, two = (rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (first, second))
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return np.divide((one * two).sum(axis=1), scale, out=np.full(len(one), np.nan), where=scale > 0)


def means(
    values: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap, name: str
) -> pd.DataFrame:
    """Of each column of ``values (n, k)``: ``<name>``, ``<name>_low``, ``<name>_high``,
    ``<name>_n``; NaN left out, the interval clustered by image."""
    n = (~np.isnan(values)).sum(axis=0)
    mean = np.divide(np.nansum(values, axis=0), n, out=np.full(len(n), np.nan), where=n > 0)
    low, high = bootstrap.intervals(values, clusters)
    parts = {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
    return pd.DataFrame(parts)


def localisation_frame(measured: Measured, bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a setting: ``right``, ``both``, ``inside``, ``rho`` between the pair's maps, ``gain``
    and ``inside_gain`` (``right`` and ``inside`` over Grad-CAM's, map by map), ``choice``
    (``right`` over that of as many neurons picked blindly), each as ``means`` has it, and
    ``empty``."""
    parts = [
        means(measured.right, measured.maps_images, bootstrap, "right"),
        means(measured.both, measured.images, bootstrap, "both"),
        means(measured.inside, measured.maps_images, bootstrap, "inside"),
        means(measured.rho, measured.images, bootstrap, "rho"),
        means(_gains(measured, measured.right), measured.maps_images, bootstrap, "gain"),
        means(_gains(measured, measured.inside), measured.maps_images, bootstrap, "inside_gain"),
        means(_over_blind(measured), measured.maps_images, bootstrap, "choice"),
    ]
    told = pd.DataFrame(
        {
            "method": [s.label for s in measured.settings],
            "variant": [s.variant for s in measured.settings],
            "n": [s.n for s in measured.settings],
            "empty": np.nansum(measured.empty, axis=0).astype(int),
            "floor": [np.isnan(s.n) for s in measured.settings],
        }
    )
    return pd.concat([told, *parts], axis=1)


def _gains(measured: Measured, values: np.ndarray) -> np.ndarray:
    if measured.plain is None:
        return np.full_like(values, np.nan)
    gains = values - values[:, [measured.plain]]
    gains[:, measured.plain] = np.nan  # of itself
    return gains


def _over_blind(measured: Measured) -> np.ndarray:
    """``right`` less that of the blind setting with the same n; NaN where there is none."""
    blind = {s.n: i for i, s in enumerate(measured.settings) if s.variant == BLIND}
    gains = np.full_like(measured.right, np.nan)
    for i, setting in enumerate(measured.settings):
        if setting.n in blind and setting.variant != BLIND:
            gains[:, i] = measured.right[:, i] - measured.right[:, blind[setting.n]]
    return gains


@dataclass(frozen=True)
class HeldOut:
    """The best setting, chosen on one half of the scenes and measured on the other, both ways."""

    chosen: tuple[Setting, Setting]
    """By the first half, by the second."""
    right: dict[Hashable, Any]
    """``right`` of each map under the setting chosen without its scene: as ``means`` has it."""
    plain: dict[Hashable, Any]
    gain: dict[Hashable, Any]


def held_out(measured: Measured, bootstrap: Bootstrap) -> HeldOut | None:
    """To report the best of many n on the scenes that it was the best on would flatter it. None
    without Grad-CAM, without settings or with fewer than two images."""
    candidates = [
        i for i, s in enumerate(measured.settings) if np.isfinite(s.n) and s.variant != BLIND
    ]
    images = np.unique(measured.images)
    if measured.plain is None or not candidates or len(images) < 2:
        return None
    second = np.isin(measured.maps_images, images[1::2])
    right = np.full(len(second), np.nan)
    chosen = []
    for half in (~second, second):
        shares = np.nan_to_num(measured.right[half][:, candidates], nan=0.5).mean(axis=0)
        best = candidates[int(shares.argmax())]
        chosen.append(measured.settings[best])
        right[~half] = measured.right[~half, best]
    plain = measured.right[:, measured.plain]
    columns = np.stack([right, plain, right - plain], axis=1)
    rows = means(columns, measured.maps_images, bootstrap, "right").to_dict("records")
    return HeldOut((chosen[0], chosen[1]), *rows)
