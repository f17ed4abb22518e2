"""A measured distance between the maps of a run and the exact ones."""

from schemas.base import Frozen


class Fidelity(Frozen):
    """One method's maps against the same in float32 without approximation."""

    label: str
    approximation: str
    maps: int
    """Pairs of maps that could be correlated; a map of equal values cannot."""
    rank_correlation: float | None
    """Spearman's, the mean over the sample."""
    rank_correlation_min: float | None
    max_difference: float
    """Largest difference of a value, in the map's own units."""

    def __str__(self) -> str:
        if self.rank_correlation is None:
            return f"{self.label}: {self.approximation}; no map of the sample could be compared"
        return (
            f"{self.label}: {self.approximation}; rank correlation to the exact maps "
            f"{self.rank_correlation:.4f} (smallest {self.rank_correlation_min:.4f}), largest "
            f"difference {self.max_difference:.1e}, {self.maps} maps"
        )
