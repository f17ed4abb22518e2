"""Literal replicas of the studies' statistics: loops over Python floats, from the papers alone."""

import itertools
import math

from scipy import stats


def mean(values):
    return math.fsum(values) / len(values)


def variance(values):
    m = mean(values)
    return math.fsum((v - m) ** 2 for v in values) / (len(values) - 1)


def hedges_g(first, second, level=0.95):
    """Hedges and Olkin 1985: g, and its normal interval."""
    n, m = len(first), len(second)
    pooled = ((n - 1) * variance(first) + (m - 1) * variance(second)) / (n + m - 2)
    g = (mean(first) - mean(second)) / math.sqrt(pooled) * (1 - 3 / (4 * (n + m) - 9))
    error = math.sqrt((n + m) / (n * m) + g**2 / (2 * (n + m - 3.94)))
    z = stats.norm.ppf((1 + level) / 2)
    return g, g - z * error, g + z * error


def correlation(x, y):
    mx, my = mean(x), mean(y)
    products = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return products / math.sqrt(
        math.fsum((a - mx) ** 2 for a in x) * math.fsum((b - my) ** 2 for b in y)
    )


def average_ranks(values):
    return [(sum(v < w for v in values) + sum(v <= w for v in values) + 1) / 2 for w in values]


def spearman_interval(x, y, level=0.95):
    """Fisher's z with the variance of Bonett and Wright 2000."""
    r = correlation(average_ranks(x), average_ranks(y))
    margin = stats.norm.ppf((1 + level) / 2) * math.sqrt((1 + r**2 / 2) / (len(x) - 3))
    return math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)


def benjamini_hochberg(p):
    """The adjusted p of rank i is the smallest of p_j * m / j over ranks j >= i, at most 1."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, smallest = [0.0] * len(p), 1.0
    for rank in range(len(p), 0, -1):
        i = order[rank - 1]
        smallest = min(smallest, p[i] * len(p) / rank)
        adjusted[i] = smallest
    return adjusted


def wilson(hits, n, level=0.95):
    """Wilson 1927."""
    z, share = stats.norm.ppf((1 + level) / 2), hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def expanded_bounds(draws, clusters, level=0.95):
    """Hesterberg 2015, section 4.2: percentiles whose tail is Student's, of sorted draws."""
    quantile = stats.t.ppf((1 - level) / 2, clusters - 1)
    tail = stats.norm.cdf(math.sqrt(clusters / (clusters - 1)) * quantile)
    draws = sorted(draws)

    def at(share):
        place = share * (len(draws) - 1)
        below = math.floor(place)
        above = min(below + 1, len(draws) - 1)
        return draws[below] + (place - below) * (draws[above] - draws[below])

    return at(tail), at(1 - tail)


def difference(values, labels):
    first = [v for v, label in zip(values, labels, strict=True) if label]
    return mean(first) - mean([v for v, label in zip(values, labels, strict=True) if not label])


def exchanged(labels, clusters):
    """Every grouping that is as likely as the observed one, with multiplicity.

    Pure clusters change groups whole; else clusters of one size exchange blocks, in any order.
    """
    names = sorted(set(clusters))
    rows = {name: [i for i, c in enumerate(clusters) if c == name] for name in names}
    blocks = {name: tuple(labels[i] for i in rows[name]) for name in names}
    if all(len(set(block)) == 1 for block in blocks.values()):
        for order in itertools.permutations(names):
            out = list(labels)
            for name, other in zip(names, order, strict=True):
                for i in rows[name]:
                    out[i] = blocks[other][0]
            yield out
        return
    sizes = sorted({len(block) for block in blocks.values()})
    strata = [[name for name in names if len(rows[name]) == size] for size in sizes]
    for orders in itertools.product(*(list(itertools.permutations(s)) for s in strata)):
        pairs = [p for s, o in zip(strata, orders, strict=True) for p in zip(s, o, strict=True)]
        inner = [list(itertools.permutations(blocks[other])) for _, other in pairs]
        for chosen in itertools.product(*inner):
            out = list(labels)
            for (name, _), block in zip(pairs, chosen, strict=True):
                for i, label in zip(rows[name], block, strict=True):
                    out[i] = label
            yield out


def permutation_p(values, labels, clusters):
    """Exact share of groupings with a difference at least as large."""
    observed = abs(difference(values, labels))
    found = [abs(difference(values, other)) for other in exchanged(labels, clusters)]
    return sum(f >= observed - 1e-9 for f in found) / len(found)


def sign_flip_p(change, clusters):
    """Exact share of signs of whole clusters with a sum at least as large."""
    names = sorted(set(clusters))
    sums = [math.fsum(d for d, c in zip(change, clusters, strict=True) if c == n) for n in names]
    found = [
        abs(math.fsum(s * d for s, d in zip(signs, sums, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    return sum(f >= abs(math.fsum(sums)) - 1e-9 for f in found) / len(found)
