"""What the paper prints, and in which of our terms."""

from pipeline.studies.agreement import Confidence

SOURCE = (
    "Tang and Yuan, Evaluating Interpretability Techniques with Human Attention in Visual "
    "Question Answering"
)
CONFIDENCE = Confidence(low=0.25, high=0.75)
"""Section 4.2: low below, high above."""
MEASURES = {
    "ty_rank": "rank correlation",
    "ty_intersection": "intersection",
    "ty_precision": "precision",
    "ty_recall": "recall",
    "ty_disc_intersection": "discrete intersection",
    "ty_iou": "IoU",
    "ty_dice": "Dice",
    "ty_f1": "F1",
}
"""Our metric -> its name; in the order of figure 2."""
NONEMPTY = "ty_f1_nonempty"
TESTED = {**MEASURES, NONEMPTY: "F1, empty left out"}
HELP = {
    "ty_rank": "Spearman's rho of the two maps, pixel by pixel; average ranks.",
    "ty_intersection": "Sum of products of the two maps, each of sum 1.",
    "ty_precision": "Share of the map's region that lies in the human region.",
    "ty_recall": "Share of the human region that the map's region covers.",
    "ty_disc_intersection": "Pixels that both regions have.",
    "ty_iou": "Pixels of both regions over pixels of either.",
    "ty_dice": "Twice the common pixels over the sum of both areas.",
    "ty_f1": "Harmonic mean of precision and recall; 0 where the regions do not meet.",
    NONEMPTY: "F1 over the pairs whose regions meet.",
}
FIGURE_2 = {
    "deconvnet": {
        "confidence": 0.562406,
        "ty_rank": 0.072938,
        "ty_intersection": 0.000006,
        "ty_precision": 0.205937,
        "ty_recall": 0.310760,
        "ty_disc_intersection": 4835.212156,
        "ty_iou": 0.111235,
        "ty_dice": 0.170511,
        "ty_f1": 0.237347,
    },
    "guided_backprop": {
        "confidence": 0.571475,
        "ty_rank": 0.127514,
        "ty_intersection": 0.000008,
        "ty_precision": 0.389583,
        "ty_recall": 0.221820,
        "ty_disc_intersection": 3699.368627,
        "ty_iou": 0.092519,
        "ty_dice": 0.162154,
        "ty_f1": 0.259783,
    },
    "guided_grad_cam": {
        "confidence": 0.571773,
        "ty_rank": 0.094544,
        "ty_intersection": 0.000008,
        "ty_precision": 0.410633,
        "ty_recall": 0.104392,
        "ty_disc_intersection": 1683.751717,
        "ty_iou": 0.049129,
        "ty_dice": 0.089887,
        "ty_f1": 0.159036,
    },
    "saliency": {
        "confidence": 0.562406,
        "ty_rank": 0.118860,
        "ty_intersection": 0.000007,
        "ty_precision": 0.308128,
        "ty_recall": 0.336146,
        "ty_disc_intersection": 5474.525229,
        "ty_iou": 0.124014,
        "ty_dice": 0.209920,
        "ty_f1": 0.308305,
    },
}
"""Means of about 300 examples of VQA v1, both targets pooled. Guided backpropagation's intersection
is printed as 0.00008, a digit short of the others; the neighbours' scale makes it 0.000008."""
TESTED_METHOD = "guided_grad_cam"
"""The method whose p-values the paper prints."""
P_VALUES = {
    "correct_wrong": {"ty_rank": 0.225, "ty_iou": 0.259, "ty_f1": 0.259},
    "correct_wrong_low": {"ty_rank": 0.009, "ty_iou": 0.003, "ty_f1": 0.004},
    "high_low_correct": {"ty_rank": 0.014, "ty_iou": 0.008, "ty_f1": 0.009},
}
"""Comparison -> metric -> two-sample t-test, Student's, section 4.2."""
CLAIMS = {
    "correct_wrong": "the paper found none",
    "correct_wrong_low": "the paper found correct predictions closer to people",
    "correct_wrong_high": "the paper found none",
    "high_low_correct": "the paper found the unsure ones closer to people",
    "high_low_wrong": "the paper found none",
}
