"""Literal replicas of the metrics: loops over pixels, ranks from scipy, no shared code."""

import math
import re

import numpy as np
from scipy.stats import spearmanr


def area_resize(values, height, width):
    """Every output cell is the mean of the source rectangle it covers."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            out[i, j] = rectangle_mean(
                values,
                i * values.shape[0] / height,
                (i + 1) * values.shape[0] / height,
                j * values.shape[1] / width,
                (j + 1) * values.shape[1] / width,
            )
    return out


def rectangle_mean(values, top, bottom, left, right):
    """Mean over a rectangle in pixel units, pixels weighted by the area inside it."""
    total = weight = 0.0
    for y in range(math.floor(top), min(math.ceil(bottom), values.shape[0])):
        for x in range(math.floor(left), min(math.ceil(right), values.shape[1])):
            inside = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
            total += inside * float(values[y, x])
            weight += inside
    return total / weight


def bilinear_resize(values, height, width):
    """Half-pixel centres (``align_corners=False``), edges clamped, no antialiasing."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * values.shape[0] / height - 0.5, 0), values.shape[0] - 1)
            x = min(max((j + 0.5) * values.shape[1] / width - 0.5, 0), values.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, values.shape[0] - 1), min(x0 + 1, values.shape[1] - 1)
            upper = values[y0, x0] * (1 - (x - x0)) + values[y0, x1] * (x - x0)
            lower = values[y1, x0] * (1 - (x - x0)) + values[y1, x1] * (x - x0)
            out[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


def resize(values, side):
    """|map| at ``side x side``: an axis that shrinks is averaged, one that grows interpolated."""
    values = np.abs(np.asarray(values, np.float64))
    for _ in range(2):
        rule = area_resize if values.shape[0] > side else bilinear_resize
        values = rule(values, side, values.shape[1]).T
    return values.astype(np.float32)


def rank_correlation(model, human, side=14):
    return spearmanr(resize(model, side).ravel(), resize(human, side).ravel()).statistic


def top_pixels(values, k, ties):
    """Positions of the k highest pixels, the first in row-major order among equals."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    if ties == "above_minimum":
        order = [i for i in order if values[i] > min(values)]
    return set(order)


def tang_yuan(model, human, side, top=0.1, ties="above_minimum", eps=1e-6):
    """The eight metrics of section 3.1, F1 without empty overlaps, and both on k pixels always."""
    scores = tang_yuan_one_reading(model, human, side, top, ties, eps)
    exact = tang_yuan_one_reading(model, human, side, top, "exact_k", eps)
    assert math.isclose(exact["ty_precision"], exact["ty_recall"])
    names = ("ty_disc_intersection", "ty_iou", "ty_f1", "ty_f1_nonempty")
    return {**scores, **{f"{name}_exact": exact[name] for name in names}}


def tang_yuan_one_reading(model, human, side, top, ties, eps):
    model, human = (resize(m, side).ravel().astype(float).tolist() for m in (model, human))
    weights = []
    for values in (model, human):
        low = min(values)
        high = max(v - low for v in values)
        scaled = [(v - low) / (high + eps) for v in values]
        weights.append([v / (math.fsum(scaled) + eps) for v in scaled])
    k = round(top * side * side)
    m, h = top_pixels(model, k, ties), top_pixels(human, k, ties)
    hits = sum(1 for pixel in range(side * side) if pixel in m and pixel in h)
    false_positives = sum(1 for pixel in m if pixel not in h)
    false_negatives = sum(1 for pixel in h if pixel not in m)
    precision = hits / (hits + false_positives + eps)
    recall = hits / (hits + false_negatives + eps)
    f1 = 2 * precision * recall / (precision + recall + eps)
    return {
        "ty_rank": spearmanr(model, human).statistic,
        "ty_intersection": math.fsum(a * b for a, b in zip(*weights, strict=True)),
        "ty_disc_intersection": hits,
        "ty_iou": hits / (hits + false_positives + false_negatives + eps),
        "ty_precision": precision,
        "ty_recall": recall,
        "ty_f1": f1,
        "ty_dice": 2 * hits / (len(m) + len(h) + eps),
        "ty_f1_nonempty": f1 if hits else math.nan,
    }


class OfficialVQA:
    """The official evaluation of one question, step by step, on its annotation dictionaries."""

    def __init__(self, tables):
        self.tables = tables
        self.period = re.compile(r"(?!<=\d)(\.)(?!\d)")
        self.comma = re.compile(r"(\d)(\,)(\d)")

    def accuracy(self, prediction, answers):
        truths = [{"answer_id": i + 1, "answer": self.tidy(a)} for i, a in enumerate(answers)]
        prediction = self.tidy(prediction)
        if len({truth["answer"] for truth in truths}) > 1:
            for truth in truths:
                truth["answer"] = self.digit_article(self.punctuation(truth["answer"]))
            prediction = self.digit_article(self.punctuation(prediction))
        accuracies = []
        for truth in truths:
            others = [other for other in truths if other != truth]
            matching = [other for other in others if other["answer"] == prediction]
            accuracies.append(min(1, float(len(matching)) / 3))
        return float(sum(accuracies)) / len(accuracies)

    def tidy(self, text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    def punctuation(self, text):
        out = text
        for p in self.tables["punctuation"]:
            if (p + " " in text or " " + p in text) or re.search(self.comma, text) is not None:
                out = out.replace(p, "")
            else:
                out = out.replace(p, " ")
        pieces, position = [], 0
        for match in list(self.period.finditer(out))[:32]:
            pieces.append(out[position : match.start()])
            position = match.end()
        return "".join(pieces) + out[position:]

    def digit_article(self, text):
        out = []
        for word in text.lower().split():
            if word in self.tables["number_words"]:
                word = self.tables["number_words"][word]
            if word not in self.tables["articles"]:
                out.append(word)
        for i, word in enumerate(out):
            if word in self.tables["contractions"]:
                out[i] = self.tables["contractions"][word]
        return " ".join(out)
