"""Figure 3: how often a word is the most important of its question, given its part of speech."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from statsmodels.stats.proportion import proportion_confint

from pipeline.studies.base import Column, Evidence, Finding, Part, Picture, Table
from pipeline.studies.goyal2016.section import Section
from pipeline.studies.goyal2016.tags import group_of, token_tags
from pipeline.studies.summary import Bootstrap

TARGET = "predicted"
FREQUENT = 15
"""Tags that the figure shows, before they are grouped."""
EXAMPLES = 4
"""Words of a group that the table names, the most frequent first."""
OTHER = "all other tags"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, told apart by the colour-blind."""
SOURCE = "figure3"


def section(evidence: Evidence) -> Section:
    """Figure 3 for every word method of the run, and its table."""
    words = evidence.run.words
    words = words[(words["target"] == TARGET) & (words["status"] != "failed")]
    if not len(words):
        return Section(
            missing=(
                "Figure 3 needs word importances for the predicted answer: add word_occlusion "
                "and word_gradient to the recipe's methods, predicted to its targets, and run "
                f"`python run_pipeline.py run RECIPE --out {evidence.run.root}` again.",
            )
        )
    tags, untagged = question_tags(evidence.examples)
    if not tags:
        return Section(missing=(f"Figure 3: none of {untagged} questions could be tagged.",))
    each = importance_by_word(words, tags)
    frame = probabilities(each, frequent_tags(tags), evidence.bootstrap)
    level = evidence.bootstrap.level
    parts: tuple[Part, ...] = (_picture(frame, untagged, level), _table(frame, untagged, level))
    return Section(parts, tuple(sentences(frame)))


def question_tags(examples: pd.DataFrame) -> tuple[dict[int, list[str]], int]:
    """``question_id`` -> a tag a token, and how many questions cannot be tagged.

    A question that is asked many times is tagged once.
    """
    known: dict[tuple, list[str] | None] = {}
    tags: dict[int, list[str]] = {}
    for row in examples[["question_id", "question", "tokens"]].itertuples(index=False):
        key = (row.question, tuple(row.tokens))
        if key not in known:
            known[key] = token_tags(*key)
        if found := known[key]:
            tags[row.question_id] = found
    return tags, len(examples) - len(tags)


def importance_by_word(words: pd.DataFrame, tags: Mapping[int, list[str]]) -> pd.DataFrame:
    """One row a (method, word) of tagged questions.

    ``words`` has one row a (method, question) with ``image_id``, ``tokens`` and ``importances``;
    ``tags`` has a tag for each token. Columns: ``method, question_id, image_id, token, tag``;
    ``top``, the word's share of being most important: 1 for the largest importance of its
    question, 1/m for each of m that tie, else 0; ``top_size``, the same by absolute value;
    ``chance``, 1 over the question's length.
    """
    words = words[words["question_id"].isin(tags)]
    lengths = words["importances"].map(len).to_numpy()
    values = np.concatenate([np.asarray(v, float) for v in words["importances"]])
    each = {
        c: np.repeat(words[c].to_numpy(), lengths) for c in ("method", "question_id", "image_id")
    }
    return pd.DataFrame(
        {
            **each,
            "token": np.concatenate(words["tokens"].to_numpy()),
            "tag": [tag for question in words["question_id"] for tag in tags[question]],
            "top": _top_share(values, lengths),
            "top_size": _top_share(np.abs(values), lengths),
            "chance": np.repeat(1 / lengths, lengths),
        }
    )


def _top_share(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Questions one after another: 1 for a question's largest value, shared where several tie."""
    starts = np.cumsum(lengths) - lengths
    largest = values == np.repeat(np.maximum.reduceat(values, starts), lengths)
    return largest / np.repeat(np.add.reduceat(largest.astype(float), starts), lengths)


def frequent_tags(tags: Mapping[int, list[str]]) -> frozenset[str]:
    """The 15 most frequent tags of all questions; of equally frequent ones the first by name."""
    counts = Counter(tag for question in tags.values() for tag in question)
    return frozenset(sorted(counts, key=lambda tag: (-counts[tag], tag))[:FREQUENT])


def probabilities(
    each: pd.DataFrame, frequent: Collection[str], bootstrap: Bootstrap
) -> pd.DataFrame:
    """One row a (group of tags, method), groups in decreasing frequency.

    ``frequent`` tags are grouped; the others make one last row, ``shown`` False. Columns:
    ``group, tags, examples`` (words), ``method, n`` (words), ``n_images, probability, ci_low,
    ci_high, chance`` (mean of 1/length over the words), ``by_size`` (the probability by absolute
    value), ``shown``.
    """
    groups = {tag: group_of(tag) if tag in frequent else OTHER for tag in each["tag"].unique()}
    each = each.assign(group=each["tag"].map(groups))
    tables = [
        _of_method(own, bootstrap).assign(method=method)
        for method, own in each.groupby("method", sort=False)
    ]
    table = pd.concat(tables, ignore_index=True).assign(shown=lambda t: t["group"] != OTHER)
    table["frequency"] = table.groupby("group")["n"].transform("max")
    order = ["shown", "frequency", "group", "method"]
    table = table.sort_values(order, ascending=[False, False, True, False], ignore_index=True)
    columns = [
        "group",
        "tags",
        "examples",
        "method",
        "n",
        "n_images",
        "probability",
        "ci_low",
        "ci_high",
    ]
    return table[[*columns, "chance", "by_size", "shown"]]


def _of_method(own: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    groups = own.groupby("group")
    table = groups.agg(
        n=("top", "size"),
        n_images=("image_id", "nunique"),
        probability=("top", "mean"),
        by_size=("top_size", "mean"),
        chance=("chance", "mean"),
        tags=("tag", lambda tags: " ".join(sorted(set(tags)))),
        examples=("token", lambda tokens: ", ".join(tokens.value_counts().index[:EXAMPLES])),
    )
    wide = np.full((len(own), len(table)), np.nan)
    wide[np.arange(len(own)), table.index.get_indexer(own["group"])] = own["top"]
    table["ci_low"], table["ci_high"] = bootstrap.intervals(wide, own["image_id"].to_numpy())
    return _mended(table.reset_index(), bootstrap.level)


def _mended(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """Where the resamples all agree (always or never most important), Wilson's interval, which
    counts an image once: no resample can show what a few images have not."""
    agreed = table["ci_low"] == table["ci_high"]
    images = table["n_images"]
    low, high = proportion_confint(table["probability"] * images, images, 1 - level, "wilson")
    table["ci_low"] = table["ci_low"].mask(agreed, low.round(12))  # 0 comes out as 1e-18
    table["ci_high"] = table["ci_high"].mask(agreed, high.round(12))
    return table


COLUMNS = (
    Column(name="group", header="part of speech", kind="text"),
    Column(name="tags", header="tags", kind="text", help="Penn Treebank tags in the group."),
    Column(name="examples", header="for instance", kind="text"),
    Column(name="method", header="method", kind="text"),
    Column(name="n", header="n", kind="count", help="Words with such a tag."),
    Column(name="n_images", header="images", kind="count", help="Images they were asked about."),
    Column(
        name="probability",
        header="P(most important)",
        low="ci_low",
        high="ci_high",
        help="Share of these words that have the largest signed importance of their question; of "
        "m words that tie each counts 1/m.",
    ),
    Column(
        name="chance",
        header="chance",
        help="The same if importance were drawn at random: the mean of 1/length.",
    ),
    Column(
        name="by_size",
        header="by size",
        help="The probability where importances are compared by absolute value: differs for "
        "word occlusion, whose drops can be negative.",
    ),
)


def _caption(untagged: int, level: float) -> str:
    return (
        f"The {FREQUENT} most frequent tags, grouped, in decreasing frequency; target: {TARGET}. "
        "Each question is tagged once, whole, by TextBlob's pattern tagger; a token of the model "
        "takes the tag of the word it shares most characters with. Ties share the first place. "
        f"{untagged:,} questions could not be tagged and are left out. Intervals: "
        f"{100 * level:g} % bootstrap over images; Wilson's over images where all words agree."
    )


def _table(frame: pd.DataFrame, untagged: int, level: float) -> Table:
    return Table(
        name=SOURCE,
        title="Most important words by part of speech (Figure 3)",
        frame=frame.assign(other=~frame["shown"]),
        columns=COLUMNS,
        caption=_caption(untagged, level),
        marked="other",
    )


def _picture(frame: pd.DataFrame, untagged: int, level: float) -> Picture:
    shown = frame[frame["shown"]]
    return Picture(
        name=SOURCE,
        title="Probability of being the most important word, given the part of speech",
        figure=_bars(shown),
        data=shown.drop(columns="shown"),
        caption=f"Dashes: chance. {_caption(untagged, level)}",
    )


def _bars(shown: pd.DataFrame) -> Figure:
    groups = list(dict.fromkeys(shown["group"]))
    methods = list(dict.fromkeys(shown["method"]))
    figure = Figure(figsize=(max(5.0, 0.9 * len(groups) + 1.5), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        own = shown[shown["method"] == method].set_index("group").reindex(groups)
        x = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        errors = np.abs(own[["ci_low", "ci_high"]].sub(own["probability"], axis=0)).to_numpy().T
        colour, whiskers = COLOURS[i % len(COLOURS)], {"capsize": 2, "ecolor": "#333333"}
        heights = own["probability"].to_numpy()
        axes.bar(x, heights, width, yerr=errors, label=method, color=colour, error_kw=whiskers)
        label = "chance" if i == 0 else ""
        axes.hlines(own["chance"], x - width / 2, x + width / 2, "black", "dashed", label=label)
    counts = shown.groupby("group")["n"].max()
    axes.set_xticks(range(len(groups)), [f"{group}\nn={counts[group]:,}" for group in groups])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("P(most important | tag)")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    return figure


def sentences(frame: pd.DataFrame) -> list[Finding]:
    """For each method the part of speech that counts most, and how wh-words fare."""
    found = []
    shown = frame[frame["shown"]]
    for i, (method, own) in enumerate(shown.groupby("method", sort=False)):
        above = own[own["ci_low"] > own["chance"]]
        if not len(above):
            text = f"By {method}, no part of speech counts more than chance would have it."
        else:
            first = above.sort_values("probability", ascending=False).iloc[0]
            text = f"By {method}, the words that count most are {_named(first)}{_wh(own)}."
        found.append(Finding(text, 0.5 - 0.1 * min(i, 3), SOURCE))
    return found


def _named(row: pd.Series) -> str:
    return f"those tagged {row['group']} ({row['examples']}): {_share(row)}"


def _share(row: pd.Series) -> str:
    return (
        f"{row['probability']:.0%} [{row['ci_low']:.0%}, {row['ci_high']:.0%}] of them are the "
        f"most important of their question (chance {row['chance']:.0%})"
    )


def _wh(own: pd.DataFrame) -> str:
    """The paper's first: said where they are not first here."""
    wh = own[own["group"] == "wh-word"]
    if not len(wh) or wh["probability"].iloc[0] >= own["probability"].max():
        return ""
    return f"; of wh-words, which came first in the paper, {_share(wh.iloc[0])}"
