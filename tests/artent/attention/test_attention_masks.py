"""Intervals against the dense mask that transformers builds from the same description."""

import pytest
import torch
from artent.attention.masks import artent_mask, dense_mask
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_compatibility_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
TEXTS = torch.tensor([[0] * 4 + [1] * 7 + [2], [0] * 12])
LEFT = torch.arange(12) >= torch.tensor([[0], [5]])
RIGHT = torch.arange(12) < torch.tensor([[12], [7]])
HOLE = torch.tensor([[True] * 12, [True, False] * 6])
NO_TEXT = torch.arange(12) < torch.tensor([[12], [0]])


def packed(mask_function):
    return packed_sequence_compatibility_function(mask_function, POSITIONS, TEXTS)


def every_other(b, h, q, k):
    return (k % 2 == 0) | (k == q)


causal, window, chunked = (
    causal_mask_function,
    sliding_window_causal_mask_function(3),
    chunked_causal_mask_function(4, torch.tensor([0, 5])),
)
SQUARE = {"q_length": 12, "kv_length": 12}
PREFILL = {"q_length": 5, "kv_length": 12, "q_offset": 7}
DECODE = {"q_length": 1, "kv_length": 12, "q_offset": 11}
STATIC = {"q_length": 5, "kv_length": 16, "q_offset": torch.tensor(0)}
STATIC_DECODE = {"q_length": 1, "kv_length": 16, "q_offset": torch.tensor(6), "allow_is_causal_skip": False}
SLID = {"q_length": 2, "kv_length": 4, "q_offset": 10, "kv_offset": 8}
NO_SKIP = {"allow_is_causal_skip": False}
BOTH_WAYS = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True}

CASES = {  # mask function, 2-d padding mask, geometry, what ours should be
    "causal": (causal, None, SQUARE, "none"),
    "causal, full padding mask": (causal, LEFT | True, SQUARE, "none"),
    "causal, not skippable": (causal, None, SQUARE | NO_SKIP, "interval"),
    "left padding": (causal, LEFT, SQUARE, "interval"),
    "right padding": (causal, RIGHT, SQUARE, "interval"),
    "padding inside": (causal, HOLE, SQUARE, "dense"),
    "a text of padding only": (causal, NO_TEXT, SQUARE, "interval"),
    "chunked prefill": (causal, None, PREFILL, "interval"),
    "chunked prefill, left padding": (causal, LEFT, PREFILL, "interval"),
    "decode": (causal, None, DECODE, "none"),
    "decode, left padding": (causal, LEFT, DECODE, "interval"),
    "static prefill": (causal, None, STATIC, "none"),
    "static prefill, left padding": (causal, LEFT[:, 3:8], STATIC, "interval"),
    "static decode": (causal, None, STATIC_DECODE, "interval"),
    "static decode, left padding": (causal, LEFT[:, :7], STATIC_DECODE, "interval"),
    "window": (window, None, SQUARE | {"local_size": 3}, "interval"),
    "window, decode": (window, None, DECODE | {"local_size": 3, "kv_length": 3, "kv_offset": 9}, "interval"),
    "window beyond the text": (sliding_window_causal_mask_function(13), None, SQUARE | {"local_size": 13}, "none"),
    "window, left padding": (window, LEFT, SQUARE | {"local_size": 3}, "interval"),
    "window, slid cache": (window, LEFT, SLID | {"local_size": 3}, "interval"),
    "chunks": (chunked, LEFT, SQUARE | {"local_size": 4}, "interval"),
    "packed": (packed(causal), None, SQUARE | NO_SKIP, "interval"),
    "packed, window": (packed(window), None, SQUARE | NO_SKIP, "interval"),
    "packed, chunks": (
        packed(chunked_causal_mask_function(4, torch.zeros(2, dtype=int))),
        None,
        SQUARE | NO_SKIP,
        "interval",
    ),
    "both ways": (bidirectional_mask_function, None, SQUARE | BOTH_WAYS, "none"),
    "both ways, padding": (bidirectional_mask_function, RIGHT, SQUARE | BOTH_WAYS, "interval"),
    "both ways, window": (
        sliding_window_bidirectional_mask_function(2),
        None,
        SQUARE | BOTH_WAYS | {"local_size": 2},
        "interval",
    ),
    "a user's overlay": (and_masks(causal, every_other), None, SQUARE | NO_SKIP, "dense"),
    "a union": (or_masks(causal, window), LEFT, SQUARE | NO_SKIP, "dense"),
}


@pytest.mark.parametrize("case", CASES)
def test_means_what_sdpa_mask_means(case):
    mask_function, attention_mask, geometry, kind = CASES[case]
    arguments = {"batch_size": 2, "mask_function": mask_function, "attention_mask": attention_mask, **geometry}
    want = sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    mask = artent_mask(**arguments)
    if kind == "none":
        assert mask is None
        many = geometry["q_length"] > 1 and mask_function is not bidirectional_mask_function
        mask = torch.ones_like(want).tril() if many else torch.ones_like(want)
    elif kind == "interval":
        assert mask.dtype == torch.int32
        assert mask.shape == (2, 1, geometry["q_length"], 2)
        assert (mask[..., 0] <= mask[..., 1]).all()
        mask = dense_mask(mask, geometry["kv_length"])
    assert mask.dtype == torch.bool
    assert torch.equal(mask, want)


def test_reads_the_cache_position_of_earlier_versions():
    position = torch.arange(7, 12)
    old = artent_mask(2, cache_position=position, kv_length=12, attention_mask=LEFT)
    new = artent_mask(2, **PREFILL, attention_mask=LEFT)
    assert torch.equal(old, new)


def test_training_step_reads_no_tensor():
    """On a GPU reading one would wait for the device at every step."""
    assert artent_mask(2, **SQUARE, q_offset=0, device="meta") is None
