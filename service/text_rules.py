"""What text may stand in names, labels and descriptions: nothing that is unseen, reordered, or looks like another.

Names and labels are compared, filtered by and shown in tables, so that two that look the same must be the same. Text in
one script that looks like a word of another (сосо in Cyrillic) stays possible: ids, not names, tell studies apart.
"""

from __future__ import annotations

import re
import unicodedata

from pydantic_core import PydanticCustomError

from search_spaces.checking import shown

_UNSEEN = re.compile(
    # Default-ignorable code points that Python holds for printable, and the blank of Braille.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_WORDS = re.compile(r"[^\W\d_]+")
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})
_GREEK_LIKE_LATIN = frozenset("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονϲϳ")


def refusal(message: str) -> PydanticCustomError:
    """An error for a pydantic validator to raise."""
    return PydanticCustomError("rule", "{text}", {"text": message})


def line_problem(text: str) -> str | None:
    """What is wrong with one line of text, None where nothing is: a label's value."""
    if not text.isprintable() or _UNSEEN.search(text):
        return f"must not contain line breaks, control or invisible characters, got {_escaped(text)}"
    if not unicodedata.is_normalized("NFC", text):
        normal = unicodedata.normalize("NFC", text)
        return f"must be in Unicode's normal form C, got {_escaped(text)} for {shown(normal)}"
    return None


def word_problem(text: str) -> str | None:
    """What is wrong with text that is looked for by eye, None where nothing is: a name, a label's key."""
    problem = line_problem(text)
    if problem or text.isascii():
        return problem
    for character in filter(_stands_for_another, text):
        normal = unicodedata.normalize("NFKC", character)
        return f"must not contain {_escaped(character)} ({character}), which looks like {shown(normal)}: write that"
    for word in _WORDS.findall(text):
        if _mixes_scripts(word):
            return f"must not mix letters of several scripts in one word, got {shown(word)}, which is {_escaped(word)}"
    return None


def checked_name(name: str) -> str:
    """The name, where it is sound; what is wrong with it as a pydantic error where not."""
    problem = word_problem(name)
    if problem:
        raise refusal(problem)
    if name != name.strip():
        raise refusal(f"must not begin or end with a blank, got {shown(name)}")
    return name


def checked_text(text: str) -> str:
    """Text of several lines, where it is sound."""
    if not all(character.isprintable() or character in "\n\t" for character in text):
        raise refusal("must not contain control or invisible characters other than line breaks and tabs")
    return text


def _stands_for_another(character: str) -> bool:
    """Whether Unicode has the letter or digit only for the sake of other encodings or of its face: ａ, 𝐚, ﬁ, Ⅳ."""
    tag, is_tagged, _ = unicodedata.decomposition(character).partition(">")
    return character.isalnum() and bool(is_tagged) and tag not in ("<super", "<sub", "<fraction")


def _escaped(text: str) -> str:
    """The text as a message shows it where what it looks like says too little."""
    escaped = ascii(text)
    return escaped if len(escaped) <= 80 else f"{escaped[:77]}..."


def _mixes_scripts(word: str) -> bool:
    """Whether letters of two scripts stand side by side. Greek may stand beside Latin (λSAM) where it looks Greek."""
    scripts = {script for script in map(_script, word) if script is not None}
    if "LATIN" in scripts and "GREEK" in scripts:
        if _GREEK_LIKE_LATIN.intersection(word):
            return True
        scripts.remove("GREEK")
    return len(scripts) > 1 and not scripts <= _EAST_ASIAN


def _script(character: str) -> str | None:
    """The first word of the character's name, which for letters is their script; None for marks, which have none."""
    if unicodedata.category(character)[0] != "L":
        return None
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0]
