"""Literal replicas of the statistics of Goyal et al. 2016: loops over examples, words and cells."""

import math

from scipy.stats import spearmanr

from tests.reference.metrics import resize


def mean(values):
    return math.fsum(values) / len(values)


def ceiling_percentage(values, method, target):
    """Table 1: mean of a method as a percentage of the mean among people, over the questions of a
    target; ``values`` are (method, target, question, value), None where nothing can be compared."""
    asked = {q for _, t, q, _ in values if t == target}
    own = [v for m, t, _, v in values if m == method and t == target and v is not None]
    people = [v for m, _, q, v in values if m == "human" and q in asked and v is not None]
    return 100 * mean(own) / mean(people)


def paired_difference(values, method, baseline, target):
    """Mean difference to a baseline over the questions that both have."""
    own = {q: v for m, t, q, v in values if m == method and t == target and v is not None}
    base = {q: v for m, t, q, v in values if m == baseline and t in (target, "human")}
    return mean([own[q] - base[q] for q in own if base.get(q) is not None])


def figure3(questions):
    """P(most important | tag): ``questions`` are lists of (tag, importance). Counts words one by
    one; of m words that share the largest importance each counts 1/m. tag -> (words, probability,
    chance)."""
    words, first, chance = {}, {}, {}
    for question in questions:
        largest = max(importance for _, importance in question)
        tied = sum(1 for _, importance in question if importance == largest)
        for tag, importance in question:
            words[tag] = words.get(tag, 0) + 1
            first[tag] = first.get(tag, 0.0) + (1 / tied if importance == largest else 0.0)
            chance[tag] = chance.get(tag, 0.0) + 1 / len(question)
    return {tag: (n, first[tag] / n, chance[tag] / n) for tag, n in words.items()}


def failure_features(drops, tops, predicted, words, top_answers, prediction):
    """All map features of one example, cell by cell and word by word."""
    flat = [float(v) for row in drops for v in row]
    answers = [int(v) for row in tops for v in row]
    total = math.fsum(abs(v) for v in flat)
    entropy = 0.0
    for v in flat:
        share = abs(v) / total if total else 1 / len(flat)
        entropy -= share * math.log(share) if share else 0.0
    average = mean(flat)
    return {
        "cells_changed": sum(1 for a in answers if a != predicted) / len(answers),
        "cells_answers": len(set(answers)),
        "drop_max": max(flat),
        "drop_mean": average,
        "drop_spread": math.sqrt(mean([(v - average) ** 2 for v in flat])),
        "drop_entropy": entropy / math.log(len(flat)),
        "drop_negative": sum(1 for v in flat if v < 0) / len(flat),
        "words_changed": sum(1 for a in top_answers if a != prediction) / len(top_answers),
        "word_drop_max": max(words),
        "word_drop_mean": mean(words),
    }


def auc_and_error(scores, right, clusters):
    """Share of (right, wrong) pairs ordered rightly, and Obuchowski's clustered standard error:
    every pair is compared, every placement summed by cluster."""
    positives = [i for i, r in enumerate(right) if r]
    negatives = [i for i, r in enumerate(right) if not r]

    def ordered(i, j):
        return 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0

    auc = mean([ordered(i, j) for i in positives for j in negatives])
    sums = dict.fromkeys(clusters, 0.0)
    for i in positives:
        placed = mean([ordered(i, j) for j in negatives])
        sums[clusters[i]] += (placed - auc) / len(positives)
    for j in negatives:
        placed = mean([ordered(i, j) for i in positives])
        sums[clusters[j]] += (placed - auc) / len(negatives)
    variance = len(sums) / (len(sums) - 1) * math.fsum(v * v for v in sums.values())
    return auc, math.sqrt(variance)


def cross_method(first, second, side=14):
    """Mean rank correlation of pairs of maps, and how many pairs have none for a constant map."""
    values, degenerate = [], 0
    for a, b in zip(first, second, strict=True):
        a, b = resize(a, side).ravel(), resize(b, side).ravel()
        if len(set(a.tolist())) == 1 or len(set(b.tolist())) == 1:
            degenerate += 1
        else:
            values.append(spearmanr(a, b).statistic)
    return mean(values) if values else math.nan, len(values), degenerate
