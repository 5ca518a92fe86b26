"""Texts to tokens to embeddings: open_clip's own answers, smaller vocabularies, what is cut and what is ignored."""

import pickle
from dataclasses import replace

import pytest
import torch

from ssl_fast.models.text import TextConfig, TextTower, Tokenizer

open_clip = pytest.importorskip("open_clip")

SMALL = TextConfig(width=32, layers=2, heads=2, context_length=12, vocab_size=1024)
TEXTS = ["a photo of a cat", "", "Zwölf Boxkämpfer &amp; 3 dogs, don't!", "very " * 40]


def test_the_whole_vocabulary_is_open_clips() -> None:
    tokens = Tokenizer(TextConfig(context_length=20))(TEXTS)
    assert torch.equal(torch.from_numpy(tokens), open_clip.tokenize(TEXTS, context_length=20))


@pytest.mark.parametrize("vocab_size", [515, 1024, 20_000])
def test_a_smaller_vocabulary_still_spells_everything(vocab_size: int) -> None:
    tokenizer = Tokenizer(TextConfig(vocab_size=vocab_size))
    for text, row in zip(TEXTS[:3], tokenizer(TEXTS[:3]), strict=True):
        assert row.max() == vocab_size - 1 and row[0] == vocab_size - 2
        inside = row[1 : row.argmax()].tolist()
        plain = open_clip.tokenizer.basic_clean(text).lower()
        assert tokenizer._tokenizer.decode(inside).replace(" ", "") == plain.replace(" ", "")


def test_a_long_text_is_cut_and_still_ends() -> None:
    row = Tokenizer(SMALL)([TEXTS[3]])[0]
    assert row[-1] == 1023 and (row == 1023).sum() == 1


def test_tokens_are_remembered_and_travel_to_worker_processes() -> None:
    tokenizer = Tokenizer(SMALL)
    first = tokenizer(TEXTS)
    assert (tokenizer(TEXTS) == first).all()
    assert (pickle.loads(pickle.dumps(tokenizer))(TEXTS) == first).all()
    first[:] = 0  # the caller's rows are its own
    assert tokenizer(TEXTS).any()


def test_what_follows_the_end_changes_nothing() -> None:
    torch.manual_seed(0)
    tower = TextTower(SMALL, 8).eval()
    tokens = torch.from_numpy(Tokenizer(SMALL)(TEXTS[:1]))
    other = tokens.clone()
    other[0, int(tokens.argmax()) + 1 :] = 7
    assert not torch.equal(tokens, other)
    torch.testing.assert_close(tower(other), tower(tokens))
    seeing = TextTower(replace(SMALL, causal=False, pool="last"), 8).eval()
    assert (seeing(other) - seeing(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heads": 0}, r"text.heads: expected at least 1, got 0"),
        ({"heads": 5}, r"text.width: expected a multiple of text.heads=5, got 32"),
        ({"context_length": 2}, r"text.context_length: expected at least 3 .* got 2"),
        ({"vocab_size": 514}, r"text.vocab_size: expected 515 to 49408, got 514"),
        ({"vocab_size": 50_000}, r"text.vocab_size: expected 515 to 49408, got 50000"),
        ({"pool": "mean"}, r"text.pool: expected 'end' or 'last', got 'mean'"),
    ],
)
def test_errors_name_the_setting(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextTower(replace(SMALL, **settings), 8)
