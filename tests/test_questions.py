"""The exact words for each question that is refused."""

import pytest

from schemas.limits import Limits
from workers.errors import BadExample
from workers.questions import check_question

KNOWN = {"what", "color", "is", "it"}
LIMITS = Limits()


def refusal(question: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(BadExample) as caught:
        check_question(question, question.split(" "), KNOWN.__contains__, limits)
    return str(caught.value)


def test_question_with_one_known_word_passes() -> None:
    check_question("which color", ("which", "color"), KNOWN.__contains__, LIMITS)


def test_question_at_the_limit_passes() -> None:
    check_question("it " * 128, ("it",) * 128, KNOWN.__contains__, LIMITS)


@pytest.mark.parametrize("question", ["", " ", "   "])
def test_question_of_length_zero_is_refused(question: str) -> None:
    assert refusal(question) == (
        f"question {question!r} has 0 words, at least 1 is needed; ask something"
    )


def test_question_of_500_words_is_refused() -> None:
    question = " ".join(["what"] * 500)
    assert refusal(question) == (
        f"question '{question[:57]}'... has 500 words, the limit is 128; "
        "shorten it or raise limits.max_words"
    )
    check_question(question, question.split(), KNOWN.__contains__, Limits(max_words=500))


def test_question_of_unknown_words_only_is_refused() -> None:
    assert refusal("quel est ce  chat") == (
        "question 'quel est ce  chat' has none of its 4 words in the model's vocabulary; "
        "ask in words the model was trained on"
    )
