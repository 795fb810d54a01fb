"""A language model of a few hundred thousand random weights, made without any download.

vLLM loads it like any other Llama when it is told `load_format="dummy"` (`--load-format dummy`):
only the configuration and the tokenizer are files, the weights are drawn when the engine starts.
What such a model says is noise, but scheduling does not depend on it.

The tokenizer has one token for each byte and adds none of its own, so a prompt of n ASCII
characters is a prompt of exactly n tokens.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_MODEL_LEN", "VOCAB_SIZE", "make_tiny_model"]

MAX_MODEL_LEN = 2048
"""Tokens of prompt and output together that the model's positions reach."""

VOCAB_SIZE = 512
"""Size of the model's vocabulary; the tokenizer has a text for each of its tokens."""

_BEGIN, _END = "<s>", "</s>"


def make_tiny_model(folder: Path) -> Path:
    """Write the model's configuration and tokenizer.

    Args:
        folder: Where the files go; made when it is missing. Existing files are written anew.

    Returns:
        The folder, which is what vLLM takes as the name of a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A random model picks every token of its vocabulary sooner or later; each needs a text.
    texts = [_BEGIN, _END, *byte_tokens]
    texts += [f"<{number}>" for number in range(len(texts), VOCAB_SIZE)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_BEGIN, _END])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _BEGIN,
            "eos_token": _END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_MODEL_LEN,
        },
    )
    _write(
        folder / "config.json",
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": MAX_MODEL_LEN,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "bos_token_id": vocabulary[_BEGIN],
            "eos_token_id": vocabulary[_END],
            "torch_dtype": "float32",
        },
    )
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as the model hubs do: indented, with a newline at its end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
