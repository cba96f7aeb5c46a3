"""Words to word pieces, offline: the bundled vocabulary, or a checkpoint's own.

A tokenizer is whatever ``tokenizers`` reads from a ``tokenizer.json`` (WordPiece, byte-level BPE,
unigram). Only its pieces are used: special tokens are put in place by
:mod:`zoo.datasets.windows`, since every published document model arranges them in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, nearest
from zoo.registry import ROOT

ASSETS = ROOT / "zoo" / "assets"
BUNDLED = ("bert_uncased",)

# What the special tokens are called: BERT's names, RoBERTa's and XLM-R's.
_NAMES = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}

MOST_PIECES = 32  # of one word: a longer one is a line of dashes or a blob, not a word


class WordTokenizer:
    """Pieces of words, and which word each belongs to.

    ``cls``, ``sep``, ``pad`` and ``unk`` are the ids of the special tokens.
    Raises :class:`ZooError` naming ``origin`` where the vocabulary lacks one of them.
    """

    def __init__(self, tokenizer: Any, origin: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.origin = origin
        ids = {}
        for name, spellings in _NAMES.items():
            known = [i for s in spellings if (i := tokenizer.token_to_id(s)) is not None]
            if not known:
                raise ZooError(
                    f"the tokenizer {origin} has none of the tokens {', '.join(spellings)}; give "
                    "the tokenizer.json of a BERT, RoBERTa or XLM-R model"
                )
            ids[name] = known[0]
        self.cls: int = ids["cls"]
        self.sep: int = ids["sep"]
        self.pad: int = ids["pad"]
        self.unk: int = ids["unk"]

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return int(self._tokenizer.get_vocab_size())

    def words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of all pieces, and for each the place of its word.

        Every word has one piece at least (the unknown one for a word of nothing but control
        characters) and :data:`MOST_PIECES` at most.
        """
        if not words:
            return [], []
        encoded = self._tokenizer.encode(
            list(words), is_pretokenized=True, add_special_tokens=False
        )
        pieces: list[list[int]] = [[] for _ in words]
        for piece, word in zip(encoded.ids, encoded.word_ids, strict=True):
            if word is not None and len(pieces[word]) < MOST_PIECES:
                pieces[word].append(piece)
        ids: list[int] = []
        places: list[int] = []
        for place, own in enumerate(pieces):
            own = own or [self.unk]
            ids += own
            places += [place] * len(own)
        return ids, places

    def text(self, text: str) -> list[int]:
        """Ids of the pieces of running text, such as a question."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def tokenizer_file(source: str) -> Path:
    """The ``tokenizer.json`` that ``source`` means, whether it is there or not."""
    path = ASSETS / source if source in BUNDLED else Path(source).expanduser()
    return path / "tokenizer.json" if path.is_dir() else path


@cache
def load_tokenizer(source: str) -> WordTokenizer:
    """The tokenizer of a bundled name, of a ``tokenizer.json`` or of the folder that holds one.

    Raises :class:`ZooError` where there is none or it can't be read.
    """
    from tokenizers import Tokenizer

    if not source:
        raise ZooError(
            "this model's words are of the vocabulary that was published with its weights; give "
            "the folder that holds its tokenizer.json (data.encoding.tokenizer=FOLDER)"
        )
    file = tokenizer_file(source)
    if not file.is_file():
        what = f"{file} is missing" if Path(source).is_dir() else f"there is no tokenizer {source}"
        raise ZooError(
            f"{what}; give a tokenizer.json, a folder that holds one, or a bundled name "
            f"({nearest(source, BUNDLED)})"
        )
    try:
        return WordTokenizer(Tokenizer.from_file(str(file)), source)
    except ZooError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ZooError(f"{file} is not a readable tokenizer ({error}); fetch it again") from None
