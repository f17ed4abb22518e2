"""Sanity: do maps depend on the model's weights, and on the answer they explain?"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from pipeline.studies.agreement import BASELINES
from pipeline.studies.base import (
    Badge,
    Column,
    Evidence,
    Finding,
    Part,
    Picture,
    Study,
    Table,
    Text,
)
from pipeline.studies.means import (
    line_style,
    listed,
    main_target,
    mean_column,
    not_computed,
    told,
    wide_means,
)
from pipeline.studies.summary import summarise
from schemas.base import Frozen

PREFIX, SIGNED = "sanity_cascade_", "sanity_cascade_signed_"
GOOD, BAD, OPEN = "depends on weights", "survives random weights", "not decided"


class Rule(Frozen):
    """When a method's maps count as depending on the model (ours: the paper judges by eye).

    A method passes when the mean ``|rho|`` between its maps and those of the model with all weights
    drawn anew is below ``threshold`` with the interval's upper bound; it fails when the mean itself
    is not below. Between the two, and with fewer than ``least`` maps, nothing is decided.
    """

    threshold: float = Field(0.3, gt=0, lt=1)
    """A correlation of medium size (Cohen 1988); noise gives the level printed beside it."""
    least: int = Field(10, ge=2)

    def badge(self, rho: float, high: float, n: int, noise: float) -> Badge:
        """The verdict on a method from its mean ``|rho|``, the upper bound and n."""
        if n < self.least or not np.isfinite(rho):
            return Badge(OPEN, None, f"{n} maps could be compared; at least {self.least} decide.")
        level = f" (noise: {noise:.2f})" if np.isfinite(noise) else ""
        numbers = (
            f"with all weights drawn anew the mean |rho| to the map is {rho:.2f}, upper bound "
            f"{high:.2f}{level}, n = {n}; the threshold is {self.threshold:g}"
        )
        if rho >= self.threshold:
            return Badge(BAD, False, f"{numbers}: the map is there without this model.")
        if high < self.threshold:
            return Badge(GOOD, True, f"{numbers}.")
        return Badge(OPEN, None, f"{numbers}: the interval reaches it.")


def sanity(evidence: Evidence) -> Study:
    """The cascade of each method, the other answer, and a badge."""
    source = "Adebayo et al. 2018, Sanity Checks for Saliency Maps"
    stages = cascade_names(evidence.values)
    if not stages:
        missing = not_computed(evidence, "Weight randomisation", "sanity", "{sample: 0.1}")
        return Study("sanity", "Sanity", source, missing=(missing,))
    frame = sanity_frame(evidence)
    badges = {
        str(row["method"]): Rule().badge(
            row["rho_full"], row["rho_full_high"], row["rho_full_n"], row["rho_noise"]
        )
        for row in frame.to_dict("records")
    }
    steps = cascade_steps(evidence, stages)
    frame = frame.assign(
        half_gone=[half_gone(steps[steps["method"] == m]) for m in frame["method"]],
        verdict=[badges[m].word for m in frame["method"]],
        why=[badges[m].why for m in frame["method"]],
    )
    left_out = sorted(set(evidence.run.definitions) & _image_methods(evidence) - set(badges))
    parts: tuple[Part, ...] = (_text(), _table(evidence, frame), _cascade(steps, stages))
    return Study(
        name="sanity",
        title="Sanity",
        source=source,
        parts=parts,
        findings=tuple(_findings(frame)),
        badges=badges,
        missing=tuple(_left_out(label) for label in left_out),
    )


def _image_methods(evidence: Evidence) -> set[str]:
    return {label for label, d in evidence.run.definitions.items() if d.kind == "image"}


def _left_out(label: str) -> str:
    return (
        f"{label} was not examined: it costs more trunk passes than the recipe's "
        "metrics.sanity.max_passes allows. Raise it under another label "
        "(`sanity_2: {metric: sanity, max_passes: ...}`) in a run of its own."
    )


def cascade_names(values: pd.DataFrame) -> list[str]:
    """The cascade's metrics of magnitudes, from the first stage to all of them."""
    names = {str(name) for name in values["metric"].unique()}
    magnitudes = [n for n in names if n.startswith(PREFIX) and not n.startswith(SIGNED)]
    return sorted(magnitudes, key=lambda name: (len(name.removeprefix(PREFIX).split("_")[0]), name))


def sanity_frame(evidence: Evidence) -> pd.DataFrame:
    """One row a method: mean ``|rho|`` with all weights drawn anew (``rho_full``, and
    ``rho_signed`` of the signed maps), with another answer's map (``rho_target``), and with noise
    (``rho_noise``), each as ``wide_means`` has it; the least dependent on the weights last."""
    stages = cascade_names(evidence.values)
    last = stages[-1]
    renamed = {
        last: "rho_full",
        last.replace(PREFIX, SIGNED): "rho_signed",
        "sanity_target": "rho_target",
        "sanity_noise": "rho_noise",
    }
    values = evidence.values
    own = values[values["metric"].isin(list(renamed)) & (values["target"] == main_target(values))]
    own = own.assign(metric=own["metric"].astype(str).map(renamed), value=own["value"].abs())
    frame = wide_means(own, list(renamed.values()), evidence)
    return frame.sort_values(["rho_full", "method"], ignore_index=True)


def _text() -> Text:
    rule = Rule()
    return Text(
        name="sanity_reading",
        title="How to read it",
        paragraphs=(
            "The model's weights are drawn anew, stage after stage from the answer back to the "
            "pixels, until nothing of what it learnt is left, and every method explains the same "
            "answer again. A map that is still there is made of the image and the architecture: "
            "however well it agrees with people, it says nothing about this model.",
            f"The badge: '{GOOD}' where the mean |rho| after the last stage is below "
            f"{rule.threshold:g} with its interval's upper bound; '{BAD}' where the mean is not "
            f"below; '{OPEN}' otherwise, and always with fewer than {rule.least} maps. Noise on "
            "the map's own grid gives the level that is as good as none. `random` and `center` "
            "look at no model: that they fail shows that the check can fail.",
            "The other answer's map tells whether a method explains an answer at all, or only the "
            "model's look at the image. Attention maps are the same for every answer by their "
            "definition.",
        ),
    )


def _table(evidence: Evidence, frame: pd.DataFrame) -> Table:
    return Table(
        name="sanity",
        title="What is left of a map without the model",
        frame=frame,
        columns=(
            Column(name="method", header="method", kind="text"),
            mean_column("rho_full", "|rho|, random weights", "All weights drawn anew; magnitudes."),
            mean_column("rho_signed", "signed maps", "The same of signed maps."),
            mean_column(
                "rho_target", "|rho|, another answer", "The trained model, another answer."
            ),
            mean_column("rho_noise", "|rho|, noise", "The level that noise on the grid gives."),
            Column(
                name="half_gone",
                header="half gone at",
                kind="text",
                help="The stage of the cascade from which on the mean rho stays below 0.5.",
            ),
            Column(name="rho_full_n", header="n", kind="count", help="Questions of the sample."),
            Column(name="rho_full_degenerate", header="degenerate", kind="count"),
            Column(name="verdict", header="verdict", kind="text"),
        ),
        caption=f"Target: {main_target(evidence.values)}. Means of |rho| over the sampled "
        "questions (Spearman at the map's own resolution); bootstrap intervals at "
        f"{evidence.bootstrap.level:.0%}, clustered by image. Degenerate: a map, or its "
        "counterpart, is constant.",
        marked="baseline",
        badged=True,
    )


def cascade_steps(evidence: Evidence, stages: list[str]) -> pd.DataFrame:
    """One row a method and stage, in their order: the mean rho of magnitudes and its interval."""
    values = evidence.values
    own = values[values["metric"].isin(stages) & (values["target"] == main_target(values))]
    data = summarise(own, ["method", "metric"], evidence.bootstrap)
    data["stage"] = data["metric"].astype(str).str.removeprefix(PREFIX)
    data["metric"] = pd.Categorical(data["metric"], stages)  # names do not sort: 100 before 11
    return data.sort_values(["method", "metric"], ignore_index=True)


def half_gone(steps: pd.DataFrame) -> str:
    """The first stage from which on a method's mean rho stays below 0.5; ``never`` without one."""
    kept = (~(steps["mean"] < 0.5)).to_numpy()
    last = int(np.flatnonzero(kept)[-1]) + 1 if kept.any() else 0
    return str(steps["stage"].iloc[last]) if last < len(steps) else "never"


def _cascade(data: pd.DataFrame, stages: list[str]) -> Picture:
    return Picture(
        name="sanity_cascade",
        title="The cascade",
        figure=_drawn(data, [stage.removeprefix(PREFIX) for stage in stages]),
        data=data,
        caption="Mean rho between the map and that of the model whose weights are drawn anew up to "
        "and including the stage, from the answer (left) back to the pixels.",
    )


def _drawn(data: pd.DataFrame, stages: list[str]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    places = {stage: i for i, stage in enumerate(stages, start=1)}
    for i, (method, own) in enumerate(data.groupby("method")):
        x = [0, *own["stage"].map(places)]
        axes.plot(x, [1, *own["mean"]], label=str(method), marker=".", **line_style(i))
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(stages) + 1), ["as trained", *stages], rotation=30, ha="right")
    axes.set(ylabel="Spearman's rho to the map", ylim=(-1.05, 1.05))
    axes.legend(fontsize="small", ncols=2)
    return figure


def _findings(frame: pd.DataFrame) -> list[Finding]:
    own = frame[~frame["method"].isin(BASELINES)]
    findings = []
    for row in own[own["verdict"] == BAD].to_dict("records"):
        rho = told(row["rho_full"], row["rho_full_low"], row["rho_full_high"])
        findings.append(
            Finding(
                f"{row['method']}: with all weights drawn anew its maps stay much as they were "
                f"(mean |rho| {rho}, n = {row['rho_full_n']}): what they show is not this model's.",
                0.85,
                "sanity",
            )
        )
    if len(good := own[own["verdict"] == GOOD]):
        findings.append(
            Finding(
                f"{listed(good['method'].tolist())}: the maps are gone once the weights are drawn "
                f"anew (mean |rho| at most {good['rho_full'].max():.2f}), so they depend on the "
                "model.",
                0.6,
                "sanity",
            )
        )
    same = own[own["rho_target_low"] > 0.9]
    if len(same):
        findings.append(
            Finding(
                f"{listed(same['method'].tolist())}: another answer's map is nearly the same "
                "(mean |rho| above 0.9), so these maps do not explain the answer in particular.",
                0.65,
                "sanity",
            )
        )
    return findings
