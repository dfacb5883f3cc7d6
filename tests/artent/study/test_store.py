"""A study's folder: what counts of its records after a kill, and what it refuses to go on with."""

import json

import pytest
from artent.distributed import ALONE
from artent.records import RecordWriter
from artent.study.config import named_config, override
from artent.study.store import BASE, Store, current_records, stage_of

SMOKE = named_config("smoke")
RUN = {"method": "lora-r4", "seed": 0}


def of(stage, *records):
    return [{**stage, **record} for record in records]


def loss(value, step=0, text="new"):
    return {"kind": "loss", "step": step, "text": text, "loss": value}


def test_a_later_start_supersedes_what_a_kill_left():
    other = {**RUN, "seed": 1, **loss(3)}
    records = [{"kind": "setup"}, *of(RUN, {"kind": "start"}, loss(1)), other, *of(RUN, {"kind": "start"}, loss(2))]
    assert current_records(records) == [{"kind": "setup"}, other, *of(RUN, loss(2))]


def test_stages_of_the_sweep_are_their_own():
    swept = {**RUN, "setting": "alpha=8"}
    again = of(swept, {"kind": "start"}, loss(3))
    records = [*of(RUN, {"kind": "start"}, loss(1)), *of(swept, {"kind": "start"}, loss(2)), *again]
    assert current_records(records) == [*of(RUN, loss(1)), *of(swept, loss(3))]
    assert stage_of(again[0]) == ("lora-r4", 0, "alpha=8")


def test_a_stage_that_went_on_keeps_what_was_before_its_checkpoint():
    """Recorded up to step 30, checkpoint at 20; what was measured at the end, without a step, is measured again."""
    records = of(
        RUN,
        {"kind": "start"},
        {"kind": "parameters", "trainable": 5},
        loss(3, 0),
        loss(2, 20),
        {"kind": "checkpoint", "step": 20},
        loss(9, 30),
        {"kind": "growth"},
        {"kind": "resumed", "step": 20},
        loss(2, 20),
        loss(1, 30),
        loss(1.5, 30, "old"),
        {"kind": "profile", "step": 30, "module": "q"},
        {"kind": "profile", "step": 30, "module": "v"},
    )
    left = current_records(records)
    assert [(r["step"], r["text"], r["loss"]) for r in left if r["kind"] == "loss"] == [
        (0, "new", 3),
        (20, "new", 2),
        (30, "new", 1),
        (30, "old", 1.5),
    ]
    assert [r["kind"] for r in left].count("profile") == 2
    assert "growth" not in {r["kind"] for r in left}


def opened(folder, config=SMOKE, *records, resume=False):
    """A store with these records, opened again."""
    store = Store(folder, config, resume, ALONE)
    store.write(
        {"kind": "setup", "config": config.to_dict(), "texts": {"new": {"name": "x", "fingerprint": "1"}}}, *records
    )
    store.close()


def reopened(folder, config=SMOKE):
    store = Store(folder, config, True, ALONE)
    store.close()
    return store


def test_a_folder_in_use_wants_resume(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--resume"):
        Store(tmp_path, SMOKE, False, ALONE)
    with pytest.raises(FileExistsError, match="no study to resume"):
        Store(tmp_path, SMOKE, True, ALONE)
    with pytest.raises(NotADirectoryError, match="is a file"):
        Store(tmp_path / "notes.txt", SMOKE, False, ALONE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["steps=5"], r"training.steps \(4 there, 5 now\)"),
        (["data.seed=5"], "data.seed"),
        (["seeds=1"], "seeds"),
        (["methods=lora-r2,full-ft"], "methods"),
    ],
)
def test_another_study_is_not_gone_on_with(tmp_path, changes, words):
    opened(tmp_path / "run")
    with pytest.raises(ValueError, match=f"another configuration: .*{words}"):
        reopened(tmp_path / "run", override(SMOKE, changes))


@pytest.mark.parametrize(
    "changes",
    [
        ["seeds=0,1,2,3"],
        ["methods=" + json.dumps([*SMOKE.to_dict()["methods"], {"kind": "lora", "learning_rate": 1, "rank": 1}])],
        ["sweep="],
        ["controls=untrained"],
        ["save_every=3", "device=cpu", "margin=0.2"],
    ],
)
def test_a_study_may_go_further_than_it_was_begun(tmp_path, changes):
    opened(tmp_path / "run")
    reopened(tmp_path / "run", override(SMOKE, changes))


def test_a_larger_lora_would_change_what_controls_are_made_from(tmp_path):
    opened(tmp_path / "run")
    larger = [*SMOKE.to_dict()["methods"], {"kind": "lora", "learning_rate": 1, "rank": 9}]
    with pytest.raises(ValueError, match=r"made from lora-r2, .* now be made from lora-r9"):
        reopened(tmp_path / "run", override(SMOKE, [f"methods={json.dumps(larger)}"]))


def test_a_folder_that_an_older_artent_wrote_is_told(tmp_path):
    with RecordWriter(tmp_path / "results.jsonl") as writer:
        writer.write({"kind": "setup", "config": {"name": "quick", "layers": 4}, "texts": {}})
    with pytest.raises(ValueError, match=r"another version of artent .*unknown key 'layers'"):
        reopened(tmp_path)


def test_another_number_of_processes_is_another_study(tmp_path):
    opened(tmp_path / "run", SMOKE, {"kind": "setup", "config": SMOKE.to_dict(), "texts": {}, "processes": 2})
    with pytest.raises(ValueError, match="begun on 2 processes and this is 1"):
        reopened(tmp_path / "run")


def test_records_that_were_never_written_are_no_study(tmp_path):
    """What a study leaves that ended on its data: the corrected command needs no --resume."""
    (tmp_path / "results.jsonl").touch()
    Store(tmp_path, SMOKE, False, ALONE).close()


def test_other_texts_are_noticed(tmp_path):
    opened(tmp_path / "run")
    store = reopened(tmp_path / "run")
    store.check_texts({"new": {"fingerprint": "1"}})
    with pytest.raises(ValueError, match="other texts: x has changed"):
        store.check_texts({"new": {"fingerprint": "2"}})


def test_without_base_weights_nothing_is_done(tmp_path):
    run = of(RUN, {"kind": "start"}, {"kind": "done"})
    opened(tmp_path / "run", SMOKE, *of({"method": BASE, "seed": 0}, {"kind": "start"}, {"kind": "done"}), *run)
    assert reopened(tmp_path / "run").done == set()
    (tmp_path / "run" / "base.safetensors").touch()
    assert reopened(tmp_path / "run").done == {(BASE, 0), ("lora-r4", 0)}


def test_a_checkpoint_counts_where_its_folder_is_there(tmp_path):
    base = of(
        {"method": BASE, "seed": 0},
        {"kind": "start"},
        {"kind": "checkpoint", "step": 2},
        {"kind": "checkpoint", "step": 4},
    )
    opened(tmp_path / "run", SMOKE, *base)
    assert reopened(tmp_path / "run").reached == {}
    store = reopened(tmp_path / "run")
    store.checkpoint((BASE, 0), 2).mkdir(parents=True)
    assert reopened(tmp_path / "run").reached == {(BASE, 0): 2}
    store.checkpoint((BASE, 0), 4).mkdir()
    assert reopened(tmp_path / "run").reached == {(BASE, 0): 4}
