"""The pictures of ``artent profile --out``: what they draw."""

from dataclasses import replace

import artent
import matplotlib
import pytest
import torch
from artent import plots, theory

matplotlib.use("Agg")

from matplotlib import pyplot

GENERATOR = torch.Generator().manual_seed(0)


def lora(rank=3, m=16):
    return artent.LoRAUpdate(torch.randn(m, rank, generator=GENERATOR), torch.randn(rank, 16, generator=GENERATOR))


def profiles_of(count, **options):
    return artent.entanglement_profile([lora() for _ in range(count)], **options)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_profiles_lie_below_the_bound_they_share():
    named = {f"layer {i}": p for i, p in enumerate(profiles_of(3, log_base=2))}
    ax = plots.profiles(named, title="q_proj")
    assert legend(ax) == [*named, "rank bound", "row|column cut"]
    for line, p in zip(ax.lines, named.values()):
        assert line.get_ydata().tolist() == p.entropy.tolist()
    p = next(iter(named.values()))
    bound = torch.tensor(theory.rank_bound(p.dims, p.cut, 3)) / torch.tensor(2.0).log()
    assert ax.lines[3].get_ydata() == pytest.approx(bound.numpy())
    assert (torch.tensor(ax.lines[3].get_ydata()) >= p.entropy - 1e-9).all()
    assert (ax.get_title(loc="left"), ax.get_ylabel()) == ("q_proj: 16×16, rank 3", "S (bits)")


def test_many_profiles_are_told_by_colour():
    ax = plots.profiles({f"layer {i}": p for i, p in enumerate(profiles_of(9))})
    assert legend(ax) == ["rank bound", "row|column cut"]
    [bar] = [other for other in ax.figure.axes if other is not ax]
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["layer 0", "layer 8"]
    assert len({tuple(line.get_color()) for line in ax.lines[:9]}) == 9


def test_bounds_are_shaded_and_standard_errors_drawn():
    W = torch.randn(64, 64, generator=GENERATOR)
    exact, sketched = (artent.entanglement_profile(W, method=method) for method in ("exact", "randomized"))
    assert len(plots.profiles({"exact": exact}).collections) == 0
    [band] = plots.profiles({"randomized": sketched}).collections
    heights = set(band.get_paths()[0].vertices[:, 1].round(9).tolist())
    at_cut = {round(float(bound), 9) for bound in sketched.cut_bounds}
    assert len(at_cut) == 2
    assert at_cut <= heights
    estimate = replace(sketched, method="hybrid", stderr=torch.full_like(exact.entropy, 0.1))
    alone = estimate.plot()
    assert legend(alone) == ["profile", "certified bounds", "rank bound", "standard error"]
    assert f"valley {float(sketched.valley_depth):.2f} ± 0.14" in [text.get_text() for text in alone.texts]
    [band] = plots.profiles({"hybrid": estimate}).collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(float(sketched.max_entropy) + 0.1)


def test_profiles_of_different_chains_are_not_put_together():
    for others in ([], [lora(), lora(rank=2)], [lora(), lora(m=8)]):
        with pytest.raises(ValueError, match="named: expected profiles of one chain"):
            plots.profiles({str(i): artent.entanglement_profile(update) for i, update in enumerate(others)})


def test_effective_ranks_by_layer():
    profiles = profiles_of(5)
    measured = [("q", 0, profiles[0]), ("q", 2, profiles[1]), ("q", 2, profiles[2]), ("v", 0, profiles[3])]
    ax = plots.effective_ranks([*measured, ("v", 2, artent.entanglement_profile(torch.eye(4)))])
    assert legend(ax) == ["q", "v", "nominal rank 3"]
    means = {line.get_label(): line for line in ax.lines}
    q = [float(p.effective_rank) for p in profiles[:3]]
    assert means["q"].get_xydata().tolist() == pytest.approx(torch.tensor([[0, q[0]], [2, (q[1] + q[2]) / 2]]).numpy())
    assert means["v"].get_ydata()[1] == pytest.approx(4)
    assert means["nominal rank 3"].get_ydata()[0] == 3
