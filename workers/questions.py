"""Whether a question can be explained at all."""

from collections.abc import Callable, Sequence

from schemas.limits import Limits
from workers.errors import BadExample


def check_question(
    question: str, tokens: Sequence[str], known: Callable[[str], bool], limits: Limits
) -> None:
    """``BadExample`` for no word, too many words, or none that the model's vocabulary has.

    Empty tokens, which a tokeniser that splits on single spaces leaves behind, are no words.
    """
    words = [token for token in tokens if token]
    who = f"question {question!r}" if len(question) <= 60 else f"question {question[:57]!r}..."
    if not words:
        raise BadExample(f"{who} has 0 words, at least 1 is needed; ask something")
    if len(words) > limits.max_words:
        raise BadExample(
            f"{who} has {len(words)} words, the limit is {limits.max_words}; "
            "shorten it or raise limits.max_words"
        )
    if not any(map(known, words)):
        raise BadExample(
            f"{who} has none of its {len(words)} words in the model's vocabulary; "
            "ask in words the model was trained on"
        )
