"""A tokenizer whose tokens are bytes, for the small model: 256 of them, id = byte, so that any text goes in and out.

It is an ordinary fast tokenizer of transformers (byte-pair encoding without a single merge): it saves, loads through
AutoTokenizer, counts offsets in characters, and takes chat templates, as a trained one does.
"""

from __future__ import annotations

__all__ = ["END", "byte_tokenizer", "is_byte_tokenizer"]

END = "\0"  # ends a text and pads: byte 0, which texts do not hold


def byte_tokenizer():
    """A new tokenizer of bytes: ``eos_token`` and ``pad_token`` are byte 0, there is no ``bos_token``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def is_byte_tokenizer(tokenizer):
    """Whether the tokens of ``tokenizer`` are bytes, judged by what it does (a saved one has no other mark)."""
    text = "Aé\n漢"
    return len(tokenizer) == 256 and tokenizer(text, add_special_tokens=False)["input_ids"] == list(text.encode())


def _characters():
    """The character that stands for each byte: its own where that is printable, else one from U+0100 on (GPT-2's).

    Byte 0 stands for itself: special tokens are looked for in the text as it is, so another character in its place
    would be taken for the end of a text wherever a text holds it.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    characters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    return [END, *characters[1:]]
