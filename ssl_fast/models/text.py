"""Texts to embeddings: open_clip's tokenizer (its vocabulary comes with the package) and its transformer."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

BYTES = 512  # tokens of one byte: within a word, and at its end
SPECIAL = 2  # tokens that begin and end a text
REMEMBERED = 1 << 14  # texts whose tokens are kept: captions made of class names are few, and come again and again
FULL_VOCABULARY = 49408


@dataclass
class TextConfig:
    """Sizes of the text tower; the defaults are those beside CLIP's ViT-B (arXiv:2103.00020, table 19).

    Attributes:
        width: of the transformer; a multiple of `heads`.
        layers, heads: of the transformer.
        context_length: L, tokens of a text; longer ones are cut.
        vocab_size: tokens that are known; fewer than 49,408 keep the most frequent merges of byte pairs, for small
            networks (the table of embeddings is most of a small tower).
        causal: each token sees those before it. False: all tokens see each other, padding included.
        pool: "end": the feature at the token that ends the text; "last": at the last of the L places.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    context_length: int = 77
    vocab_size: int = FULL_VOCABULARY
    causal: bool = True
    pool: str = "end"


class Tokenizer:
    """Texts as rows of tokens: lower case, byte pairs, cut or padded with 0 to `context_length`.

    Args:
        config: `context_length` and `vocab_size` are read.

    Raises:
        ValueError: a size that is out of its range.
        ImportError: open_clip is not installed.

    Example:
        >>> Tokenizer(TextConfig(context_length=6))(["a cat"]).tolist()
        [[49406, 320, 2368, 49407, 0, 0]]
    """

    def __init__(self, config: TextConfig) -> None:
        _check(config)
        self.context_length = config.context_length
        self._tokenizer = _open_clip("tokenizer").SimpleTokenizer(_merges(config.vocab_size))
        self._known: dict[str, NDArray[np.int64]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:  # [n, L]
        """The tokens of n texts."""
        rows = np.empty((len(texts), self.context_length), dtype=np.int64)
        for i, text in enumerate(texts):
            row = self._known.get(text)
            if row is None:
                row = self._tokenizer(text, self.context_length)[0].numpy()
                if len(self._known) < REMEMBERED:
                    self._known[text] = row
            rows[i] = row
        return rows


class TextTower(nn.Module):
    """open_clip's text transformer with a linear projection: tokens [N, L] -> embeddings [N, D].

    Args:
        config: its sizes.
        dim: D.

    Raises:
        ValueError: a size that is out of its range, or an unknown way of pooling.
        ImportError: open_clip is not installed.

    Reference: Radford et al. 2021, arXiv:2103.00020, section 2.4.
    """

    def __init__(self, config: TextConfig, dim: int) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.model: nn.Module = _open_clip("transformer").TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=dim,
            no_causal_mask=not config.causal,
            pool_type="argmax" if config.pool == "end" else "last",  # the token of the end has the largest number
        )

    def forward(
        self,
        tokens: Tensor,  # [N, L] int64
    ) -> Tensor:  # [N, D]
        """Embeddings of texts, not normalised."""
        z: Tensor = self.model(tokens)
        return z


def _merges(vocab_size: int) -> io.BytesIO:
    """The file of merges that the tokenizer reads: a line of title, then the merges by their frequency."""
    with gzip.open(_open_clip("tokenizer").default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")
    kept = "\n".join(lines[: 1 + vocab_size - BYTES - SPECIAL])
    return io.BytesIO(gzip.compress(kept.encode("utf-8"), compresslevel=1))


def _open_clip(part: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"open_clip.{part}")
    except ImportError as error:
        raise ImportError("text towers need open_clip: pip install ssl_fast[recipes]") from error


def _check(config: TextConfig) -> None:
    for name in ("width", "layers", "heads"):
        if getattr(config, name) < 1:
            raise ValueError(f"text.{name}: expected at least 1, got {getattr(config, name)}")
    if config.width % config.heads:
        raise ValueError(f"text.width: expected a multiple of text.heads={config.heads}, got {config.width}")
    if config.context_length < 3:
        raise ValueError(
            f"text.context_length: expected at least 3 (a token between start and end), got {config.context_length}"
        )
    if not BYTES + SPECIAL < config.vocab_size <= FULL_VOCABULARY:
        raise ValueError(
            f"text.vocab_size: expected {BYTES + SPECIAL + 1} to {FULL_VOCABULARY}, got {config.vocab_size}"
        )
    if config.pool not in ("end", "last"):
        raise ValueError(f"text.pool: expected 'end' or 'last', got {config.pool!r}")
