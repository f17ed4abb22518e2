"""Many tests at once."""

import numpy as np
from statsmodels.stats.multitest import multipletests


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """P-values ``(m,)`` adjusted for the false discovery rate (Benjamini and Hochberg 1995).

    Tests without a p-value (NaN) stay NaN and do not count. Calling everything at or below q
    significant makes at most a share q of the calls false, on average.
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method="fdr_bh")[1]
    return adjusted
