"""Pictures of profiles: what they draw, and what they do not claim."""

import artent
import matplotlib
import numpy as np
import pytest
import torch
from artent import theory

matplotlib.use("Agg")

from matplotlib import pyplot

GENERATOR = torch.Generator().manual_seed(0)
LORA = artent.LoRAUpdate(torch.randn(64, 2, generator=GENERATOR), torch.randn(2, 64, generator=GENERATOR))
ONE = artent.LoRAUpdate(LORA.B[:, :1], LORA.A[:1])
FLAT = torch.randn(256, 256, generator=GENERATOR)
DECAYING = FLAT * 0.3 ** torch.arange(256)


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def words(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def arrows(ax):
    return [text for text in ax.texts if getattr(text, "arrow_patch", None) is not None]


def test_the_profile_its_bound_and_its_nulls():
    profile = artent.entanglement_profile(LORA, log_base=2)
    ax = profile.plot(nulls={"Haar": theory.haar_null(LORA, draws=2, log_base=2)})
    assert legend(ax) == ["profile", "rank bound", "Haar"]
    assert ax.lines[0].get_ydata().tolist() == profile.entropy.tolist()
    bound = [nats / np.log(2) for nats in theory.rank_bound(profile.dims, profile.cut, 2)]
    assert ax.lines[1].get_ydata().tolist() == pytest.approx(bound)
    assert "bits" in ax.get_ylabel()
    assert profile.plot(ax=ax) is ax
    artent.entanglement_profile(torch.ones(1, 7)).plot()  # no bonds: an empty figure, not an error


def test_a_null_may_be_anything_over_bonds():
    profile, other = artent.entanglement_profile(LORA), artent.entanglement_profile(ONE, log_base=2)
    S = other.entropy * np.log(2)
    nulls = {
        "profile": other,
        "tensor": S.clone().requires_grad_(),
        "half": S.bfloat16(),
        "array": S.numpy(),
        "list": S.tolist(),
        "tuple": tuple(S),
        "null": theory.Null(S.tolist(), [0.1] * len(S)),
    }
    ax = profile.plot(nulls=nulls)
    assert legend(ax)[2:] == list(nulls)
    for name, line in zip(nulls, ax.lines[2:]):
        assert line.get_ydata().tolist() == pytest.approx(S.tolist(), rel=4e-3 if name == "half" else 1e-6), name
    with pytest.raises(ValueError, match=r"nulls\['short'\]: expected 11 values.*got shape \(3,\)"):
        profile.plot(nulls={"short": [1.0, 2.0, 3.0]})


def test_a_valley_is_a_number_only_where_it_is_certain():
    exact = artent.entanglement_profile(LORA)
    assert f"valley {exact.valley_depth:.2f}" in words(exact.plot())
    assert len(arrows(exact.plot())) == 1

    certain = artent.entanglement_profile(DECAYING, method="randomized")
    ax = certain.plot()
    assert f"valley {artent.entanglement_profile(DECAYING).valley_depth:.2f}" in words(ax)
    assert legend(ax) == ["profile", "certified bounds", "rank bound"]
    certain.plot(ax=ax)
    assert legend(ax).count("certified bounds") == 1

    unknown = artent.entanglement_profile(FLAT, method="randomized")
    ax = unknown.plot()
    (text,) = [text for text in words(ax) if "valley" in text]
    assert text.startswith("valley 0.00 … ")
    assert float(text.split()[-1]) >= unknown.valley_bounds[1]
    assert not arrows(ax)


@pytest.mark.parametrize("update", [LORA, ONE, FLAT, DECAYING, ONE.dense()])
def test_words_do_not_stand_on_words(update):
    for method in ("exact", "randomized"):
        options = {"rank": 1, "alpha": 4} if method == "randomized" else {}  # wide bounds, from near zero
        ax = artent.entanglement_profile(update, method=method, **options).plot()
        ax.figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
        boxes += [text.get_window_extent() for text in (*ax.get_xticklabels(), ax._left_title)]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_second_profile_is_not_cut_off():
    ax = artent.entanglement_profile(ONE).plot()
    profile = artent.entanglement_profile(FLAT[:64, :64])
    assert profile.plot(ax=ax).get_ylim()[1] > profile.max_entropy
    assert ax.get_ylim()[0] == 0
    assert words(ax).count("row|column cut") == 1
