"""Where there is no update, and where none can be read."""

import math
import warnings

import peft
import pytest
import torch
from artent import profile_model, weight_updates
from tuned_models import Q0, QV, full_ft, llama, lora, train


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
