"""What text may stand in names, labels and descriptions: nothing that is unseen, reordered, or looks like another.

Names and labels' keys are compared, filtered by and shown in tables, so that two that look the same must be the same:

- Punctuation and symbols are in the form that a keyboard has: no wide slash, no dash for a hyphen. A × stays a ×.
- Digits are 0 to 9.
- A word has letters of one script, and not only such as look like Latin ones (сосо in Cyrillic), unless another word
  of the text shows which script it is (обучение с SAM).
- Greek letters are symbols here. Alone they may always stand (ρ, ρ=0.1, λ-ρ), beside Latin ones where they look Greek
  (λSAM, but not ραper).

Labels' values and descriptions are text for people: dashes, quotes and words of any language may stand there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set as AbstractSet

from pydantic_core import PydanticCustomError

from search_spaces.checking import shown

_UNSEEN = re.compile(
    # Default-ignorable code points that Python holds for printable, and the blanks of Braille, Khitan and music.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U00016fe4\U0001d159"
    "\U000e0100-\U000e01ef]"
)
_DOTTED_TWICE = re.compile("[ij\u0131\u0237]\u0307")
_WORDS = re.compile(r"(?:[^\W\d_][\u0300-\u036f]*)+")
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"})

# What follows is the part of Unicode's confusables.txt that matters here; × is left out, which these studies need.
_LIKE_LATIN = frozenset(
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϜϺͿαγικνορστυχϳ"  # Greek, with κ, τ and χ
    "АВЕЅІЈКМНОРСТУХЗЬабгеорсухѕіјѡѴѵҮүһҽӀӠԁԌԛԜԝꙄꙇк"  # Cyrillic, with к
    "ՍՏՕագզհոռսցքօ"  # Armenian
    "ᎠᎡᎢᎥᎩᎪᎫᎬᎳᎷᎻᎽᏀᏂᏃᏎᏏᏒᏔᏕᏙᏚᏞᏟᏢᏦᏧᏮᏳᏴꭵꮁꮃꮓꮩꮪꮯ"  # Cherokee
    "ⲅⲎⲒⲔⲘⲚⲞⲟⲢⲣⲤⲥⲦⲨⲬⳊⳌⳐⳒ"  # Coptic
    "ꓐꓑꓒꓓꓔꓖꓗꓙꓚꓜꓝꓟꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴ"  # Lisu
    "ᐯᑌᑭᑯᑲᒍᒪᕁᕼᕽᖇᖯᖴᗅᗞᗪᗰᗷ"  # Canadian syllabics
)
_SYMBOLS = frozenset("αγικνρστυχ")
"""Those of them that are known as symbols, and may stand alone."""

_LOOKALIKES = {
    other: character
    for character, others in {
        "-": "\u02d7\u2010\u2012\u2013\u2014\u2015\u2043\u2212",
        "/": "\u1735\u2041\u2044\u2215\u2571\u27cb\u29f8\u31d3",
        "\\": "\u2216\u27cd\u29f5\u29f9\u31d4",
        ":": "\u02d0\u02f8\u0589\u05c3\u0703\u0704\u16ec\u1803\u1809\u205a\u2236\ua4fd\ua789",
        ".": "\u0701\u0702\ua4f8\ua60e",
        ",": "\u201a\ua4f9",
        "'": "\u02b9\u02bb\u02bc\u02bd\u02be\u02c8\u02ca\u02cb\u02f4\u055a\u055d\u05f3\u07f4\u07f5\u2018\u2019\u201b"
        "\u2032\u2035\ua78b\ua78c",
        '"': "\u02ba\u02ee\u05f4\u201c\u201d\u201e\u201f\u3003",
        "!": "\u01c3\u2d51",
        "|": "\u01c0\u2223\u23fd",
        "*": "\u066d\u204e\u2217",
        "~": "\u2053\u223c",
        "=": "\u1400\u2e40\u30a0\ua4ff",
        "+": "\u16ed",
        "<": "\u02c2\u1438\u2039\u276e",
        ">": "\u02c3\u1433\u203a\u276f",
        "^": "\u02c4\u02c6",
        "(": "\u2768\u2772\u3014\ufd3e",
        ")": "\u2769\u2773\u3015\ufd3f",
        "{": "\u2774",
        "}": "\u2775",
        "\u00b7": "\u2027\u2219\u22c5",
        "a": "\u0251",
        "g": "\u0261",
        "i": "\u0269",
        "c": "\u1d04",
        "o": "\u1d0f\u1d11",
        "s": "\ua731",
        "u": "\u1d1c",
        "v": "\u1d20",
        "w": "\u1d21",
        "z": "\u1d22",
    }.items()
    for other in others
}


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
    if dotted := _DOTTED_TWICE.search(text):
        return f"must not contain {_escaped(dotted[0])}, which looks like {shown(dotted[0][0])}: write that"
    for character in text:
        if unicodedata.category(character) == "Nd" and not character.isascii():
            digit = unicodedata.digit(character)
            return f"must have no other digits than 0 to 9, got {_escaped(character)} ({character}): write {digit}"
        if other := _other_for(character):
            return f"must not contain {_escaped(character)} ({character}), which looks like {shown(other)}: write that"
    words = _WORDS.findall(text)
    shown_scripts = {_script(letter) for letter in _letters("".join(words)) if letter not in _LIKE_LATIN}
    return next(filter(None, (_problem_of_word(word, shown_scripts) for word in words)), None)


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


def _other_for(character: str) -> str | None:
    """What is to be written for a character that looks like it; None where the character is the one to write.

    Of letters and digits that Unicode has only for the sake of other encodings or of their face: ａ, 𝐚, ﬁ, Ⅳ, and not
    those whose place says something: ², ½.
    """
    tag, is_tagged, _ = unicodedata.decomposition(character).partition(">")
    normal = unicodedata.normalize("NFKC", character)
    if tag in ("<super", "<sub", "<fraction"):
        return None
    differs = bool(is_tagged) if character.isalnum() else normal != character
    return _LOOKALIKES.get(normal, normal) if differs else _LOOKALIKES.get(character)


def _letters(text: str) -> list[str]:
    return [letter for letter in unicodedata.normalize("NFD", text) if _script(letter)]


def _problem_of_word(word: str, shown_scripts: AbstractSet[str | None]) -> str | None:
    """shown_scripts: those of which the text has letters that look like no Latin ones."""
    letters = _letters(word)
    if not letters or (len(letters) == 1 and letters[0] in _SYMBOLS):
        return None
    if _mixes_scripts(letters):
        rule = "must not mix letters of several scripts in one word"
    elif _LIKE_LATIN.issuperset(letters) and not any(_script(letter) in shown_scripts for letter in letters):
        rule = "must not have a word of which all letters look like Latin ones"
    else:
        return None
    problem = f"{rule}, got {shown(word)}, which is {_escaped(word)}"
    if _SYMBOLS.intersection(letters):
        problem += "; a Greek letter that looks like a Latin one stands alone, as in ρ=0.1 or ρ_max"
    return problem


def _escaped(text: str) -> str:
    """The text as a message shows it where what it looks like says too little."""
    escaped = ascii(text)
    return escaped if len(escaped) <= 80 else f"{escaped[:77]}..."


def _mixes_scripts(letters: list[str]) -> bool:
    """Whether letters of two scripts stand side by side. Greek may stand beside Latin (λSAM) where it looks Greek."""
    scripts = {script for script in map(_script, letters) if script is not None}
    if "LATIN" in scripts and "GREEK" in scripts:
        if _LIKE_LATIN.intersection(letters):
            return True
        scripts.remove("GREEK")
    return len(scripts) > 1 and not scripts <= _EAST_ASIAN


def _script(character: str) -> str | None:
    """The first word of the character's name, which for letters is their script; None for marks, which have none."""
    if unicodedata.category(character)[0] != "L":
        return None
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0]
