"""The model of the demo and the tests has the sizes that tests count on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, make_tiny_model
from tokenizers import Tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a model."""
    return make_tiny_model(tmp_path / "some" / "model")


def test_a_character_is_a_token(model: Path) -> None:
    """The length of an ASCII prompt is its number of tokens."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompt = "The quick\nbrown fox, 100 times: it is no exception"
    assert len(tokenizer.encode(prompt).ids) == len(prompt)
    assert tokenizer.decode(tokenizer.encode("Grüße!").ids) == "Grüße!"


def test_every_token_has_a_text(model: Path) -> None:
    """Whatever a random model generates can be decoded."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert all(tokenizer.id_to_token(number) for number in range(VOCAB_SIZE))


def test_the_configuration_fits_the_tokenizer(model: Path) -> None:
    """Model and tokenizer agree on sizes and on special tokens."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == VOCAB_SIZE
    assert config["max_position_embeddings"] == MAX_MODEL_LEN
    assert config["eos_token_id"] == tokenizer.token_to_id("</s>")
    assert config["bos_token_id"] == tokenizer.token_to_id("<s>")


def test_it_can_be_made_again(model: Path) -> None:
    """Making the model where it is gives the same files."""
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    make_tiny_model(model)
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}
