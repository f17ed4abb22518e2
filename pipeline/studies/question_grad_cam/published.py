"""What the paper prints."""

from typing import NamedTuple

SOURCE = "Ummettuguli, Towards visual explanations that ground multiple modalities"
SWEEP = (10, 15, 20, 25, 30, 35, 40, 45, 50, 100, 200, 300, 400, 500, 750, 1000, 1024)
"""Figures 27 to 77; 1024 are all neurons of the combine layer."""

BEST_IN_PAPER = 25
"""Of the sink and the towels, section 3.3; others of its examples look best at 200 or 400."""


class Rank(NamedTuple):
    """Tables 5 and 6: two questions about one picture and Spearman's rho of their vectors."""

    first: str
    second: str
    rho: float


RANKS = (
    Rank("What is the color of the sink?", "What color are the towels?", 0.860921),
    Rank("What color are the trees?", "What color is the grass?", 0.932396),
    Rank("What color are the toilets?", "What color is the wall?", 0.812344),
    Rank("What color is the cake?", "What color are the balloons?", 0.896294),
    Rank("What color is the phone?", "What color is her top?", 0.872120),
)
TOP = 10
"""Neurons that tables 1 to 4 list."""
SAME_QUESTION = (10, 8)
"""Of those how many one question has in common on two pictures: tables 1 and 2."""
TWO_QUESTIONS = (2, 2)
"""And two questions on one picture: tables 3 and 4."""
