import copy
import math
import warnings

import peft
import pytest
import torch
from artent import LoRAUpdate, entanglement_profile, profile_model, weight_updates
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

QV = ["q_proj", "v_proj"]
Q0 = "model.layers.0.self_attn.q_proj"


def llama(**options):
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(**shape | heads | options)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double().eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=1, n_head=2, n_positions=16)).double().eval()


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": QV} | options)


def train(model, scale=0.3):
    """Random weights where training would write some."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += scale * noise.to(parameter.dtype)
    return model.eval()


def dense(update):
    return update.scaling * update.B @ update.A if isinstance(update, LoRAUpdate) else update


@torch.no_grad()
def acted(model, name, original):
    """ΔW as the model acts: its layer on every unit vector (or token), minus the original weight."""
    layer = model.get_base_model().get_submodule(name)
    weight = original[f"{name}.weight"]
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    if isinstance(base, torch.nn.Embedding):
        return layer(torch.arange(len(weight))) - weight
    if type(base).__name__ == "Conv1D":
        return (layer(torch.eye(len(weight), dtype=torch.float64)) - base.bias).T - weight.T
    return layer(torch.eye(weight.shape[1], dtype=torch.float64)).T - weight


FACTORED = {
    "plain": (llama, lora()),
    "rsLoRA": (llama, lora(use_rslora=True)),
    "patterns": (
        llama,
        lora(
            rank_pattern={"v_proj": 2, r"^model\.layers\.1\..*q_proj": 7},
            alpha_pattern={"layers.0.self_attn.q_proj": 9},
        ),
    ),
    "nonzero start": (llama, lora(init_lora_weights=False)),
    "orthogonal start": (llama, lora(init_lora_weights="orthogonal")),
    "embedding": (llama, lora(target_modules=["embed_tokens", "o_proj"])),
    "Conv1D": (gpt2, lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
}
MERGED = {
    "DoRA": (llama, lora(use_dora=True)),
    "DoRA Conv1D": (gpt2, lora(use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)),
    "LoHa": (llama, peft.LoHaConfig(r=2, alpha=4, target_modules=QV)),
    "OFT": (llama, peft.OFTConfig(oft_block_size=4, target_modules=QV)),
    "AdaLoRA": (llama, peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=QV)),
    "modules_to_save": (gpt2, lora(target_modules=["c_attn"], modules_to_save=["lm_head"], fan_in_fan_out=True)),
}
CHANGED_START = {
    "PiSSA": (llama, lora(init_lora_weights="pissa")),
    "OLoRA": (llama, lora(init_lora_weights="olora")),
}


@pytest.mark.parametrize("case", [*FACTORED, *MERGED, *CHANGED_START])
def test_an_update_is_what_the_model_does(case):
    build, config = (FACTORED | MERGED | CHANGED_START)[case]
    model = build()
    original = copy.deepcopy(model.state_dict())
    model = peft.get_peft_model(model.float() if case in CHANGED_START else model, config).double()
    train(model)
    updates = dict(weight_updates(model, original if case in CHANGED_START else None))
    assert updates
    for name, update in updates.items():
        expected = acted(model, name, original)
        error = (dense(update) - expected).norm() / expected.norm()
        assert error < (1e-6 if case in CHANGED_START else 1e-12), name  # PEFT starts PiSSA in float32
        if name != "lm_head":
            assert isinstance(update, LoRAUpdate) == (case in FACTORED or case == "modules_to_save")
    targets = getattr(config, "modules_to_save", None) or []
    assert {name.rsplit(".")[-1] for name in updates} == {*config.target_modules, *targets}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"trainable_token_indices": [1, 2]}, ["model.embed_tokens"]),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, ["model.embed_tokens"]),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, ["model.embed_tokens"]),
        ({"target_modules": ["embed_tokens", "lm_head"]}, ["model.embed_tokens", "lm_head"]),  # factors of their own
    ],
)
def test_tied_adapters_come_once(options, names):
    model = train(peft.get_peft_model(llama(), lora(**options)))
    assert [name for name in dict(weight_updates(model)) if "self_attn" not in name] == names


@pytest.mark.parametrize("merge_first", [False, True])
@pytest.mark.parametrize("config", [lora(), lora(use_dora=True)], ids=["LoRA", "DoRA"])
def test_a_merged_adapter_still_has_its_update(config, merge_first):
    model = llama()
    original = copy.deepcopy(model.state_dict())
    model = train(peft.get_peft_model(model, config))
    expected = acted(model, Q0, original)
    if merge_first:
        model.merge_adapter()
    before = copy.deepcopy(model.state_dict())
    update = dict(weight_updates(model))[Q0]
    assert torch.allclose(dense(update), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_several_active_adapters_add_up_and_inactive_ones_do_not():
    model = llama()
    original = copy.deepcopy(model.state_dict())
    model = peft.get_peft_model(model, lora())
    model.add_adapter("second", lora(r=3, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    train(model)
    updates = dict(weight_updates(model))
    for name, rank in ((Q0, 7), (Q0.replace("q_proj", "v_proj"), 4)):
        assert len(updates[name].A) == rank
        assert torch.allclose(dense(updates[name]), acted(model, name, original), rtol=0, atol=1e-12)
    model.set_adapter("second")
    updates = dict(weight_updates(model))
    assert sorted(updates) == [Q0, Q0.replace(".0.", ".1.")]
    assert torch.allclose(dense(updates[Q0]), acted(model, Q0, original), rtol=0, atol=1e-12)


def test_a_small_update_survives_a_bfloat16_base():
    model = peft.get_peft_model(llama().bfloat16(), peft.LoHaConfig(r=2, alpha=2, target_modules=QV))
    train(model, 0.01)
    update = dict(weight_updates(model))[Q0]
    reference = copy.deepcopy(model).double()
    expected = acted(reference, Q0, reference.get_base_model().get_submodule(Q0).base_layer.state_dict(prefix=f"{Q0}."))
    assert update.dtype == torch.float32
    assert (update - expected).norm() < 1e-2 * expected.norm()  # merged in bfloat16 first it would be about 1


@pytest.mark.parametrize("case", ["plain", "rsLoRA", "patterns"])
def test_profiles_from_factors_and_from_merged_minus_base_agree(case):
    build, config = FACTORED[case]
    base = build()
    model = train(peft.get_peft_model(copy.deepcopy(base), config))
    from_factors = profile_model(model)
    from_dense = profile_model(copy.deepcopy(model).merge_and_unload(), base, targets=QV)
    assert list(from_factors) == list(from_dense)
    for name, profile in from_factors.items():
        assert torch.allclose(profile.entropy, from_dense[name].entropy, rtol=0, atol=1e-9)
        alone = entanglement_profile(dict(weight_updates(model))[name])
        assert torch.allclose(profile.entropy, alone.entropy, rtol=0, atol=1e-12)


def test_a_profile_of_live_factors_carries_gradients():
    model = train(peft.get_peft_model(llama(), lora()))
    sum(p.entropy.sum() for p in entanglement_profile([u for _, u in weight_updates(model)])).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.norm() > 0 for g in gradients)
    assert not any(p.entropy.requires_grad for p in profile_model(model).values())


def full_ft():
    base = llama()
    tuned = copy.deepcopy(base)
    for layer in tuned.model.layers:
        layer.mlp.requires_grad_(False)
    return base, train(tuned)


def test_full_ft_is_the_difference_of_every_matrix_that_changed(tmp_path):
    base, tuned = full_ft()
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="10KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    expected = {
        name: tuned.get_submodule(name).weight - base.get_submodule(name).weight
        for name in ["model.embed_tokens"] + [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"]
    }  # lm_head is tied, norms are vectors, the MLP is frozen
    pairs = [
        (tuned, base),
        (tuned, base.state_dict()),
        (tuned.state_dict(), base.state_dict()),
        (str(tmp_path / "tuned"), tmp_path / "base"),
        (tmp_path / "tuned", tmp_path / "base" / "model.safetensors"),
        (torch.compile(tuned), base),
    ]
    for pair in pairs:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            updates = dict(weight_updates(*pair))
        assert sorted(updates) == sorted(expected)
        assert all(torch.equal(updates[name], delta) for name, delta in expected.items())
    assert list(dict(weight_updates(tuned, base, targets=["lm_head"]))) == ["lm_head"]


def test_conv1d_is_turned_round_where_a_module_tells():
    base = gpt2()
    tuned = train(copy.deepcopy(base))
    name = "transformer.h.0.attn.c_attn"
    for pair in ((tuned, base), (tuned.state_dict(), base), (tuned, base.state_dict())):
        assert dict(weight_updates(*pair))[name].shape == (72, 24)
    assert dict(weight_updates(tuned.state_dict(), base.state_dict()))[name].shape == (24, 72)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [Q0, Q0.replace(".0.", ".1.")]),
        ([Q0], [Q0]),
        (("layers.1.self_attn.v_proj", Q0), [Q0, "model.layers.1.self_attn.v_proj"]),
        (r".*\.0\.self_attn\.[qv]_proj", [Q0, Q0.replace("q_proj", "v_proj")]),
    ],
)
def test_targets_mean_what_they_mean_in_peft(targets, expected):
    adapted = train(peft.get_peft_model(llama(), lora()))
    base, tuned = full_ft()
    assert list(dict(weight_updates(adapted, targets=targets))) == expected
    assert list(dict(weight_updates(tuned, base, targets=targets))) == expected


@pytest.mark.parametrize("case", [*MERGED, *CHANGED_START])
def test_an_adapter_folder_of_any_method_is_merged_onto_base(case, tmp_path):
    build, config = (MERGED | CHANGED_START)[case]
    model = build().float()
    original = copy.deepcopy(model.state_dict())
    save_file({name: tensor.clone() for name, tensor in original.items()}, tmp_path / "base.safetensors")
    model = train(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path / "adapter")
    updates = dict(weight_updates(tmp_path / "adapter", tmp_path / "base.safetensors"))
    assert updates
    for name, update in updates.items():
        expected = acted(copy.deepcopy(model).double(), name, {k: v.double() for k, v in original.items()})
        assert (dense(update).double() - expected).norm() < 1e-5 * expected.norm(), name
    random = torch.random.get_rng_state()
    assert (
        list(dict(weight_updates(str(tmp_path / "adapter"), original, targets=list(updates)[:1]))) == list(updates)[:1]
    )
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize("case", ["plain", "rsLoRA", "patterns", "embedding", "Conv1D", "modules_to_save"])
def test_an_adapter_folder_reads_as_the_live_model(case, tmp_path):
    build, config = (FACTORED | MERGED)[case]
    model = build()
    original = copy.deepcopy(model.state_dict())
    model = train(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path)
    live = {name: dense(update) for name, update in weight_updates(model)}
    saved = {name: dense(update) for name, update in weight_updates(tmp_path, original)}
    assert sorted(live) == sorted(saved)
    for name, delta in live.items():
        assert torch.allclose(saved[name], delta, rtol=1e-12, atol=0 if case != "modules_to_save" else 1e-12)
    factors_only = set(dict(weight_updates(str(tmp_path))))
    assert factors_only == set(live) - {"lm_head"}


SAVED_WHOLE = {
    "a Conv1D, base a model": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"], "fan_in_fan_out": True},
    ),
    "rows of tokens": (llama, {"trainable_token_indices": [5, 3]}),
    "rows of tokens by module": (llama, {"trainable_token_indices": {"embed_tokens": [7]}, "use_dora": True}),
}


@pytest.mark.parametrize("case", SAVED_WHOLE)
def test_what_an_adapter_saves_whole_is_read_where_base_is_given(case, tmp_path):
    build, options = SAVED_WHOLE[case]
    base = build()
    model = train(peft.get_peft_model(build(), lora(**options)))
    model.save_pretrained(tmp_path)
    live = {name: dense(update) for name, update in weight_updates(model)}
    saved = {name: dense(update) for name, update in weight_updates(tmp_path, base)}
    assert sorted(live) == sorted(saved)
    for name, delta in live.items():
        assert torch.allclose(saved[name], delta, rtol=1e-12, atol=1e-12), name
    if not options.get("use_dora"):
        whole = next(name for name in live if name.endswith(("c_fc", "embed_tokens")))
        with pytest.warns(UserWarning, match=f"saved whole.*base: {whole}"):
            assert set(dict(weight_updates(tmp_path))) == set(live) - {whole}
        with pytest.raises(ValueError, match=f"needs base: {whole}"):
            list(weight_updates(tmp_path, targets=[whole]))


def test_a_head_that_is_saved_as_the_embedding_it_is_tied_to_is_found(tmp_path):
    llama().save_pretrained(tmp_path / "base")  # ties its head
    for name, options in {
        "copies": {"modules_to_save": ["lm_head"]},
        "factors": {"target_modules": ["lm_head"]},
    }.items():
        model = train(peft.get_peft_model(llama(), lora(**options)))
        model.save_pretrained(tmp_path / name)
        live = {name: dense(update) for name, update in weight_updates(model)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            saved = {name: dense(update) for name, update in weight_updates(tmp_path / name, tmp_path / "base")}
        assert sorted(saved) == sorted(live)
        assert torch.allclose(saved["lm_head"], live["lm_head"], rtol=1e-12, atol=1e-12)


def test_a_base_that_does_not_fit_an_adapter_is_refused_though_its_factors_need_none(tmp_path):
    train(peft.get_peft_model(llama(), lora())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"base has no weight.*q_proj"):
        list(weight_updates(tmp_path, {"other.weight": torch.randn(5, 5)}))
    partial = {name: w for name, w in llama().state_dict().items() if "layers.1" not in name}
    with pytest.warns(UserWarning, match=r"no weight of 2 of its 4 modules"):
        assert len(dict(weight_updates(tmp_path, partial))) == 4
    with pytest.raises(ValueError, match=r"q_proj: shape \(24, 24\) in the tuned model, \(32, 32\) in base"):
        list(weight_updates(tmp_path, llama(hidden_size=32)))


@pytest.mark.parametrize("start", [True, "orthogonal"])
def test_before_the_first_step_there_is_no_update_and_it_is_said(start):
    model = peft.get_peft_model(llama(), lora(init_lora_weights=start))
    with pytest.warns(UserWarning, match="4 weights did not change.*training has not begun"):
        assert profile_model(model) == {}
    with torch.no_grad():
        model.get_base_model().get_submodule(Q0).lora_B["default"].weight += 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(profile_model(model)) == [Q0]
    with pytest.warns(UserWarning, match="1 weights did not change.*layers.1"):
        assert list(profile_model(model, targets=["q_proj"])) == [Q0]


def test_unchanged_weights_of_full_ft_are_named_where_asked_for():
    base, tuned = full_ft()
    with pytest.warns(UserWarning, match=r"2 weights did not change.*layers\.0\.mlp\.up_proj"):
        assert len(list(weight_updates(tuned, base, targets=["up_proj", "q_proj"]))) == 2
    with pytest.warns(UserWarning, match="base is the tuned model itself"):
        assert not list(weight_updates(tuned, tuned))


def test_broken_weights_are_not_taken_for_unchanged_ones():
    model = train(peft.get_peft_model(llama(), lora()))
    with torch.no_grad():
        model.get_base_model().get_submodule(Q0).lora_A["default"].weight[0, 0] = math.nan
    assert Q0 in dict(weight_updates(model))
    with pytest.raises(ValueError, match=rf"{Q0}\.A: .*NaN"):
        profile_model(model)


def _adapted(config, build=llama):
    return train(peft.get_peft_model(build(), config))


def _folder(tmp_path, config):
    _adapted(config).save_pretrained(tmp_path)
    return tmp_path


def _without_head():
    return {k.removeprefix("model."): v for k, v in llama().state_dict().items()}


def _pissa():
    return _adapted(lora(init_lora_weights="pissa"), lambda: llama().float())


def _pissa_and_its_own_base():
    model = _pissa()
    return [model, model.get_base_model()]


def _prompt_tuned():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    return peft.get_peft_model(llama(), config)


def _pickled(tmp_path):
    torch.save({}, tmp_path / "model.bin")
    return tmp_path / "model.bin"


def _twice():
    return [llama(), llama()]


# arguments, error, message[, targets]
BAD = {
    "no base": (lambda _: [llama()], ValueError, "base is missing"),
    "another prefix": (lambda _: [llama(), _without_head()], ValueError, "'model.layers.0.*19 names.*another prefix"),
    "another size": (lambda _: [llama(), llama(vocab_size=50)], ValueError, r"\(48, 24\).*\(50, 24\).*resized"),
    "nested checkpoint": (lambda _: [llama(), {"model": llama().state_dict()}], TypeError, "one level down"),
    "not a model": (lambda _: [3, llama()], TypeError, "model_or_path must be a module"),
    "PiSSA without base": (lambda _: [_pissa()], ValueError, "pass base"),
    "PiSSA, base adapted in place": (lambda _: _pissa_and_its_own_base(), ValueError, "adapted in place"),
    "prompt tuning": (lambda _: [_prompt_tuned()], ValueError, "base is missing"),
    "not adapted": (
        lambda _: [_adapted(lora())],
        ValueError,
        r"\['k_proj'\] match none of the 4",
        ["q_proj", "k_proj"],
    ),
    "bare name as regex": (lambda _: _twice(), ValueError, r"regular expression.*\['q_proj'\]", "q_proj"),
    "broken regex": (lambda _: _twice(), ValueError, "not a regular expression", "q_(proj"),
    "no targets": (lambda _: _twice(), ValueError, "targets is empty", []),
    "targets of numbers": (lambda _: _twice(), TypeError, "targets must be", [1]),
    "targets that are vectors": (lambda _: _twice(), ValueError, "no 2-d", ["norm"]),
    "no such path": (lambda p: [p / "none", llama()], FileNotFoundError, "no file or folder"),
    "no such path, no base": (lambda p: [p / "none"], FileNotFoundError, "no file or folder"),
    "pickled": (lambda p: [_pickled(p), llama()], ValueError, "not opened"),
    "DoRA folder": (lambda p: [_folder(p, lora(use_dora=True))], ValueError, "use_dora=True.*live model"),
    "LoHa folder": (lambda p: [_folder(p, peft.LoHaConfig(r=2, target_modules=QV))], ValueError, "LOHA"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case, tmp_path):
    arguments, error, message, *targets = BAD[case]
    with pytest.raises(error, match=message):
        list(weight_updates(*arguments(tmp_path), targets=targets[0] if targets else None))


def test_layers_whose_update_is_no_matrix_are_told():
    convolution = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3))
    model = train(peft.get_peft_model(convolution, peft.LoraConfig(r=2, target_modules=["0"])))
    with pytest.raises(ValueError, match=r"shape \(4, 2, 3, 3\).*matrices only"):
        list(weight_updates(model))
    alora = _adapted(lora(task_type="CAUSAL_LM", alora_invocation_tokens=[1]))
    with pytest.raises(ValueError, match="cannot be merged"):
        list(weight_updates(alora))
