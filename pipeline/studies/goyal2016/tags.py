"""Part-of-speech tags of a question's words, as the model cuts them.

TextBlob's copy of pattern's tagger ships its lexicon inside the package and works offline.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

Tagged = list[tuple[str, str]]
GROUPS = {
    "wh-word": ("WDT", "WP", "WP$", "WRB"),
    "noun": ("NN", "NNS", "NNP", "NNPS"),
    "verb": ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ"),
    "adjective": ("JJ", "JJR", "JJS"),
    "adverb": ("RB", "RBR", "RBS"),
    "pronoun": ("PRP", "PRP$"),
    "determiner": ("DT", "PDT"),
    "preposition": ("IN",),
    "conjunction": ("CC",),
    "number": ("CD",),
    "to": ("TO",),
    "there": ("EX",),
    "modal": ("MD",),
    "particle": ("RP",),
    "possessive": ("POS",),
}
"""Forms of one part of speech are one bar, as WDT, WP and WRB are in the paper."""
_GROUP_OF = {tag: group for group, tags in GROUPS.items() for tag in tags}


def group_of(tag: str) -> str:
    """The group of a Penn Treebank tag; a tag that is in none is a group of its own."""
    return _GROUP_OF.get(tag, tag)


@lru_cache(maxsize=1)
def tagger() -> Callable[[str], Tagged]:
    """TextBlob's pattern tagger, its lexicon loaded; imported late, as that takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its lexicon files open
        from textblob.en import lexicon, tag

        for part in (lexicon, lexicon.morphology, lexicon.context, lexicon.entities):
            part.load()
    return tag


def token_tags(question: str, tokens: Sequence[str]) -> list[str] | None:
    """One tag for each of the model's tokens; None where the two cannot be aligned."""
    return align(question, tokens, tagger()(question))


def align(question: str, tokens: Sequence[str], tagged: Tagged) -> list[str] | None:
    """Each token takes the tag of the tagger's word that it shares most characters with.

    The question is tagged once, in its own spelling and context. Both cuttings are laid over its
    characters, white space left out, in lower case; of words that share equally many the first
    counts. They cannot be aligned where the tagger's words do not spell the question, or the tokens
    skip a letter or a digit of it between them.
    """
    text = "".join(question.lower().split())
    if "".join(word.lower() for word, _ in tagged) != text:
        return None
    owner = [i for i, (word, _) in enumerate(tagged) for _ in word.lower()]
    tags, start = [], 0
    for token in tokens:
        place = re.compile(rf"[\W_]*?({re.escape(token.lower())})").match(text, start)
        if place is None or not token:
            return None
        owners = owner[place.start(1) : place.end(1)]
        tags.append(tagged[max(dict.fromkeys(owners), key=owners.count)][1].split("-")[0])
        start = place.end(1)
    return tags
