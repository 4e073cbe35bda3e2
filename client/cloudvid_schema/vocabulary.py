"""What a model ignores in a prompt: unknown words, where its vocabulary is limited, and what is too long for it."""

import json
import re
import unicodedata
from collections.abc import Collection, Iterator

from cloudvid_schema.protocol import Description, TextToImageRequest

_MOST_LETTERS = 24
_MOST_BYTES = 400
"""Of the words that a warning names, as JSON: two warnings share a header, and nginx takes 4 KiB of headers."""

_PIECE = re.compile(r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
"""CLIP's tokenizers split a text so, and each piece into one token or more."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case; hyphens and apostrophes separate words, and a possessive `'s` is dropped."""
    letters = unicodedata.normalize("NFC", re.sub(r"['’]s\b", "", text.lower()))
    return re.findall(r"[^\W_]+", letters)


def unknown_words(text: str, vocabulary: Collection[str]) -> list[str]:
    """The words of a prompt that a model does not know, each once, in their order."""
    return [word for word in dict.fromkeys(words(text)) if word not in vocabulary]


def vocabulary_warnings(request: TextToImageRequest, vocabulary: Collection[str]) -> Iterator[str]:
    """A warning for each prompt of a request that has words in it which a model does not know."""
    for name in ("prompt", "negative_prompt"):
        if unknown := unknown_words(getattr(request, name), vocabulary):
            yield f"{name}: the model does not know {_enumerated(unknown)}"


def length_warnings(request: TextToImageRequest, model: Description | None) -> Iterator[str]:
    """A warning for each prompt of a request that certainly has more tokens than a model reads. Only the worker has the
    tokenizer, so what it warns of is exact.
    """
    if model is None or model.prompt_tokens is None:
        return
    for name in ("prompt", "negative_prompt"):
        least = len(_PIECE.findall(unicodedata.normalize("NFC", getattr(request, name))))
        if least > model.prompt_tokens:
            yield f"{name}: the model reads {model.prompt_tokens} tokens and ignores the rest of these {least} or more"


def _enumerated(unknown: list[str]) -> str:
    """As many words as have room, and how many more there are."""
    named: list[str] = []
    for word in unknown:
        short = word if len(word) <= _MOST_LETTERS else f"{word[:_MOST_LETTERS]}…"
        if named and len(json.dumps([*named, short])) > _MOST_BYTES:
            break
        named.append(short)
    more = len(unknown) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
