"""Whether a tokenised question can be explained at all."""

from collections.abc import Callable, Sequence

from schemas.limits import ImageLimits
from workers.errors import BadExample


def check_question(
    tokens: Sequence[str], known: Callable[[str], bool], limits: ImageLimits
) -> None:
    """``BadExample`` for no word, too many words, or none that the model's vocabulary has.

    Empty tokens, which a tokeniser that splits on single spaces leaves behind, are no words.
    """
    words = [token for token in tokens if token]
    if not words:
        raise BadExample("the question has 0 words, at least 1 is needed; ask something")
    if len(words) > limits.max_words:
        raise BadExample(
            f"the question has {len(words)} words, the limit is {limits.max_words}; "
            "shorten it or raise limits.max_words"
        )
    if not any(map(known, words)):
        shown = ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
        raise BadExample(
            f"the model's vocabulary has none of the question's {len(words)} words ({shown}); "
            "ask in words the model was trained on"
        )
