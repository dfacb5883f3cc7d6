"""Training with several processes: what they measure is what one process measures that trained the same alone."""

import importlib.util
import json

import pytest

WAYS = {  # how it is started: what is trained
    "torchrun": (2, ["ddp_full", "ddp_lora", "fsdp_full", "fsdp_lora", "accelerate_full", "accelerate_lora"]),
    "fork": (4, ["ddp_lora", "fsdp_full", "hybrid_full", "mixed_full", "fsdp_lora", "fsdp_dora", "fsdp_mps"]),
    "deepspeed": (2, ["zero_full", "zero_lora", "zero_dora"]),
}
MODULES = {
    "full": [
        "embed_tokens",
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.v_proj",
        "layers.0.mlp.down_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj",
        "layers.1.mlp.down_proj",
    ],
    "adapted": [f"layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qv"],
}
SMOOTH = ("entropy", "lower", "upper", "cut_probabilities")


@pytest.fixture(scope="module", params=WAYS)
def trained(request, launch, tmp_path_factory):
    """(processes, {name: what it measured}) of a run."""
    size, names = WAYS[request.param]
    if request.param == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (pip install deepspeed): nothing is trained under ZeRO-3")
    out = tmp_path_factory.mktemp(request.param)
    if request.param == "fork":
        ended = launch("trained.py", out, "--fork", size, *names)
    else:
        ended = launch("trained.py", out, *names, torchrun=size)
    ranks = "".join(file.read_text() for file in sorted(out.glob("ranks/*.json")))
    assert all((out / f"{name}.json").is_file() for name in names), ranks + ended.stderr[-4000:]
    return size, {name: json.loads((out / f"{name}.json").read_text()) for name in names}


def test_same_profiles_as_one_process(trained):
    _, runs = trained
    for name, found in runs.items():
        kind = "full" if name.endswith("full") else "adapted"
        assert (
            sorted(found["measured"]) == sorted(found["alone"]) == sorted(f"model.{module}" for module in MODULES[kind])
        )
        for module, alone in found["alone"].items():
            measured = found["measured"][module]
            for key, value in alone.items():
                expected = pytest.approx(value, rel=0, abs=1e-6) if key in SMOOTH else value
                assert measured[key] == expected, (name, module, key)


def test_entropies_at_the_cut_are_those_of_a_singular_value_decomposition(trained):
    _, runs = trained
    for name, found in runs.items():
        for module, S in found["cuts"].items():
            profile = found["measured"][module]
            assert profile["entropy"][len(profile["sites"][0]) - 1] == pytest.approx(S, abs=1e-6), (name, module)


def test_the_first_process_alone_has_the_results(trained):
    size, runs = trained
    for found in runs.values():
        assert found["given"] == [len(found["alone"]), *[0] * (size - 1)]


def test_parameters_were_sharded_where_they_should_be(trained):
    _, runs = trained
    for name, found in runs.items():
        assert bool(found["sharded"]) != name.startswith("ddp"), name
