"""Figures of attention: what they draw."""

import artent
import matplotlib
import pytest
import torch
from artent.attention import AttentionEntanglement

matplotlib.use("Agg")

from matplotlib import pyplot


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def result(layers=2, lengths=(64, 16, 256)):
    """Two texts, the second shorter than 256 tokens."""
    S = torch.rand(len(lengths), layers, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S[2, :, 1] = torch.nan
    stats = torch.ones(layers, 2, 3)
    methods = tuple("streamed" if length > 64 else "exact" for length in lengths)
    layers = tuple(range(5, 5 + layers))
    return AttentionEntanglement(
        S, 0.01 * S, S - 0.25, S + 0.5, stats, stats, stats, lengths, methods, layers, (256, 64), variant="raw"
    )


def test_heads_are_a_map_of_layers_and_heads():
    measured = result()
    ax = artent.plots.attention_heads(measured)
    assert torch.allclose(torch.from_numpy(ax.images[0].get_array().data), measured.s_ext[2, :, 0])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["5", "6"]
    assert "256" in ax.get_title(loc="left")
    assert artent.plots.attention_heads(measured, ax=ax, length=16) is ax
    with pytest.raises(ValueError, match="length is 32; measured were 64, 16, 256"):
        artent.plots.attention_heads(measured, length=32)


@pytest.mark.parametrize("layers", [2, 9])
def test_growth_rises_from_left_to_right_with_its_bounds_and_nulls(layers):
    measured = result(layers)
    ax = artent.plots.attention_growth(measured, nulls={"a null": [2.0, 1.0, 3.0]})
    assert len(ax.containers) == layers
    for at, bars in enumerate(ax.containers):
        line, _, (heights,) = bars
        assert line.get_xdata().tolist() == [16, 64, 256]
        mean = [measured.s_ext[i, at].nanmean().item() for i in (1, 0, 2)]
        assert line.get_ydata().tolist() == pytest.approx(mean)
        for S, segment in zip(mean, heights.get_segments(), strict=True):
            assert segment[:, 1].tolist() == pytest.approx([S - 0.25, S + 0.5])
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["a null"].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert drawn["ln T, the most there can be"].get_ydata().tolist() == pytest.approx(
        [2.7726, 4.1589, 5.5452], abs=1e-4
    )
    named = [text.get_text() for text in ax.get_legend().get_texts() if text.get_text().startswith("layer")]
    assert named == (["layer 5", "layer 6"] if layers == 2 else [])  # many layers have a scale of colours
    assert "bounds" in ax.get_ylabel()
