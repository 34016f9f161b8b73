"""What may stand in names and labels' keys."""

from __future__ import annotations

import pytest

from service.text_rules import line_problem, word_problem

LOOKALIKES = [
    "сосо",  # Cyrillic
    "как",  # Cyrillic
    "сёсо",  # Cyrillic
    "ооо",  # Greek omicron
    "Α",  # Greek
    "ρν",  # Greek
    "ՏՕՏ",  # Armenian
    "ᎪᏢᎬ",  # Cherokee
    "ραper",
    "τeam",
    "mοdel",
    "p\u0430ypal",
    "ρ\u0301aper",
    "ρSAM",
    "p\u0251per",
]
PUNCTUATION = {
    "a\uff0fb": "/",
    "a\u2215b": "/",
    "a\u2044b": "/",
    "lambda\u2010rho": "-",
    "lambda\u2011rho": "-",
    "lambda\u2013rho": "-",
    "lambda\u2015rho": "-",
    "lambda\u2212rho": "-",
    "a\u2024b": ".",
    "a\u2026": "...",
    "model\uff1ax": ":",
    "model\u2236x": ":",
    "model\ua789x": ":",
    "Ada\u2019s": "'",
    "\u201cquoted": '"',
    "λ\u22c5ρ": "·",
    "a\uff3fb": "_",
    "digi\u0307ts": "i",
    "d\u0131\u0307gits": "\u0131",
    "o\u1d0fo": "o",
}
GOOD = [
    *("λ", "ρ", "α", "σ", "ρ=0.1", "λ-ρ", "λ/ρ sweep", "λ × ρ", "λ·ρ", "ρ_max", "ρ0", "λSAM", "μP", "λρ", "Ω", "αβγ"),
    *(
        "naïve réseau",
        "Größe",
        "ışık",
        "обучение",
        "кот",
        "сравнение с SAM",
        "как есть",
        "Порівняння і тест",
        "日本語テスト",
        "東京タワー",
        "한국어",
        "العربية",
        "श्री",
        "x²",
    ),
    *("½", "10⁻³", "ρ₊", "a+b=c", "→", "±1", "∇L", "100 °C", "🙂"),
]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_a_word_that_looks_like_a_latin_one_is_latin(text: str) -> None:
    problem = word_problem(text)
    assert problem is not None
    assert "\\" in problem  # what it really is


@pytest.mark.parametrize("text", PUNCTUATION)
def test_punctuation_is_that_of_a_keyboard(text: str) -> None:
    problem = word_problem(text)
    assert problem is not None
    assert f"looks like {PUNCTUATION[text]!r}: write that" in problem


@pytest.mark.parametrize("digit", ["\uff10", "\u0966", "\u09e6", "\u07c0", "\u0660", "\U0001d7ce"])
def test_digits_are_those_of_a_keyboard(digit: str) -> None:
    assert f"no other digits than 0 to 9, got {digit!a} ({digit}): write 0" in str(word_problem(f"run-1{digit}"))


@pytest.mark.parametrize("unseen", ["\U00016fe4", "\U0001d159", "\u2800", "\u3164"])
def test_a_blank_that_is_none_is_refused(unseen: str) -> None:
    assert "invisible characters" in str(word_problem(f"a{unseen}b"))


@pytest.mark.parametrize("text", GOOD)
def test_symbols_and_words_of_every_language_may_stand_in_a_name(text: str) -> None:
    assert word_problem(text) is None


@pytest.mark.parametrize("text", ["ραper", "τeam", "ρν"])
def test_who_takes_a_symbol_for_a_letter_is_told_how_it_may_stand(text: str) -> None:
    assert "stands alone, as in ρ=0.1 or ρ_max" in str(word_problem(text))


@pytest.mark.parametrize("text", ["λ", "ρ=0.1", "10–20 µs", "“best” – so far", "обучение с λ", "速度：快"])
def test_a_labels_value_is_text_for_people(text: str) -> None:
    assert line_problem(text) is None
