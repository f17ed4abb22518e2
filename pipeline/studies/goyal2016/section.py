"""What one part of the study yields, before all parts are put together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.studies.base import Finding, Part


@dataclass(frozen=True)
class Section:
    """Tables and figures, sentences about them, and what could not be computed."""

    parts: tuple[Part, ...] = ()
    findings: tuple[Finding, ...] = ()
    missing: tuple[str, ...] = ()


def reasons(cases: Mapping[str, np.ndarray]) -> np.ndarray:
    """Masks ``(n,)`` by reason -> the first reason that holds for each, or None."""
    found = np.full(len(next(iter(cases.values()))), None, object)
    for reason, mask in reversed(list(cases.items())):
        found[mask] = reason
    return found
