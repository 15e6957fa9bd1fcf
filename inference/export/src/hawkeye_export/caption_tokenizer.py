"""The captioner's tokenizer: the prompts' tokens from a tokenizer.json, and a made-up tokenizer for tests."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from hawkeye_export.errors import UnsupportedGraphError

START, PAD, END = 0, 1, 2
"""BART's `<s>`, `<pad>`, `</s>`."""

BASE_VOCABULARY = 50265
"""Tokens of BART; Florence-2 puts its own, which a caption never shows, behind them."""

PROMPTS = {
    # What Florence-2's processor makes of <CAPTION> and <DETAILED_CAPTION>.
    "caption": "What does the image describe?",
    "detailedCaption": "Describe in detail what is shown in the image.",
}


@dataclass(frozen=True)
class Prompt:
    """A question to the captioner; its tokens begin with `<s>` and end with `</s>`."""

    text: str
    tokens: list[int]


def prompts(tokenizer: str, vocabulary: int) -> dict[str, Prompt]:
    """The prompts in the tokens of a tokenizer.json. Raises UnsupportedGraphError when it is not a Florence-2's."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_str(tokenizer)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise UnsupportedGraphError(f"the tokenizer cannot be loaded: {error}") from error
    special = {"<s>": START, "<pad>": PAD, "</s>": END}
    for token, number in special.items():
        if loaded.token_to_id(token) != number:
            raise UnsupportedGraphError(f"the tokenizer's {token} is {loaded.token_to_id(token)}, Florence-2's is {number}")
    found = {}
    for name, text in PROMPTS.items():
        tokens = [START, *loaded.encode(text, add_special_tokens=False).ids, END]
        if max(tokens) >= vocabulary:
            raise UnsupportedGraphError("the tokenizer has tokens that the captioner does not know")
        if loaded.decode(tokens, skip_special_tokens=True) != text:
            raise UnsupportedGraphError(f"the tokenizer does not give {text!r} back")
        found[name] = Prompt(text, tokens)
    return found


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: printable ones for themselves, others shifted."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (value for value in range(256) if value not in plain)
    letters = {value: chr(value) for value in plain} | {value: chr(256 + place) for place, value in enumerate(others)}
    return [letters[value] for value in range(256)]


def seeded_tokenizer(vocabulary: int, seed: int) -> str:
    """A tokenizer.json of BART's form with made-up words: as many tokens as the captioner has, special ones where BART has them.

    The prompts' own words are among them, one token each.
    """
    choose = random.Random(seed)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *_byte_letters()]
    known = set(tokens)
    merges: list[list[str]] = []

    def add(word: str) -> None:
        # Byte-pair encoding reaches a word letter by letter, so its beginnings are tokens too.
        for end in range(2, len(word) + 1):
            piece = word[:end]
            if piece not in known and len(tokens) < words:
                known.add(piece)
                tokens.append(piece)
                merges.append([word[: end - 1], word[end - 1]])

    words = min(BASE_VOCABULARY, vocabulary)
    space = _byte_letters()[ord(" ")]
    for text in PROMPTS.values():
        for word in text.rstrip("?.").replace(" ", f" {space}").split(" "):
            add(word)
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    while len(tokens) < words:
        syllables = (choose.choice(consonants) + choose.choice(vowels) for _ in range(choose.randint(1, 3)))
        add((space if choose.random() < 0.8 else "") + "".join(syllables) + choose.choice(("", choose.choice(consonants))))
    tokens += [f"<loc_{place}>" for place in range(vocabulary - len(tokens))]
    special = [0, 1, 2, 3, *range(words, vocabulary)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level,
        "added_tokens": [
            {"id": place, "content": tokens[place], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for place in special
        ],
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: place for place, token in enumerate(tokens[:words])}, "merges": merges},
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False)
