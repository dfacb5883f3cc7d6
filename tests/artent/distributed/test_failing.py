"""Processes that end, stop, raise or disagree: every other one says so, and what was written can be read."""

import json

import pytest
from artent.records import read_records


@pytest.fixture(scope="module")
def scenarios(launch, tmp_path_factory):
    """outcome(scenario): {rank: what it returned or raised}, and the modules in its results.jsonl."""
    out = tmp_path_factory.mktemp("failing") / "scenarios"
    ended = launch("failing.py", out)
    assert ended.returncode == 0, ended.stderr[-4000:]

    def outcome(scenario):
        ranks = {int(file.stem): json.loads(file.read_text()) for file in (out / scenario).glob("[0-9].json")}
        results = out / scenario / "results.jsonl"
        return ranks, [record["module"] for record in read_records(results)] if results.is_file() else None

    return outcome


def layers(number):
    return [f"layers.{i}" for i in range(number)]


def test_killed(scenarios):
    ranks, written = scenarios("killed")  # rank 2 of 3, in the second round
    assert sorted(ranks) == [0, 1]
    for told in ranks.values():
        assert told["raised"] == "RuntimeError"
        assert "rank 2 of 3 ended" in told["message"]
        assert "killed (out of memory?)" in told["message"]
    assert written == layers(3)


def test_first_process_killed(scenarios):
    ranks, written = scenarios("first_killed")  # in the third round
    assert sorted(ranks) == [1, 2]
    assert all("rank 0 of 3 ended" in told["message"] for told in ranks.values())
    assert written == layers(6)


def test_killed_while_the_others_gather(scenarios):
    ranks, written = scenarios("killed_gathering")
    assert sorted(ranks) == [0, 2, 3]
    for told in ranks.values():
        assert told["raised"] == "RuntimeError"
        assert "could not be gathered" in told["message"]
        assert "another process ended" in told["message"]
    assert written == []


def test_silent(scenarios):
    ranks, written = scenarios("stopped")  # rank 2 of 4, in the second round, given 2 seconds
    assert ranks.pop(2) == "stopped"
    assert "rank 2 of 4 did not answer rank 0 within 2 s" in ranks.pop(0)["message"]
    assert sorted(ranks) == [1, 3]  # they wait for the first, which gives up
    assert all("rank 0 of 4 ended, or closed its connection" in told["message"] for told in ranks.values())
    assert written == layers(4)


def test_an_error_of_one_is_everyones(scenarios):
    ranks, _ = scenarios("one_raises")
    first, *others = (ranks[rank]["returned"] for rank in range(3))
    nan, good, unread, ungathered, whole = first
    assert nan[1] == "ValueError"
    assert nan[2].startswith("layers.4: holds NaN or Inf")
    assert nan[2].endswith("(on rank 1 of 3)")
    assert "layers.3" in nan[0]  # of the first round
    assert good == [layers(6), None, None]
    assert unread[1:] == ["OSError", "cannot read layers.5 (on rank 2 of 3)"]
    assert ungathered[1:] == ["OSError", "cannot read layers.5 (on rank 1 of 3)"]
    assert whole == [[str(i) for i in range(6)], None, None]
    for other in others:
        assert [case[0] for case in other] == [[]] * 5  # results are the first's
        assert [case[1:] for case in other] == [case[1:] for case in first]


def test_lists_that_differ(scenarios):
    ranks, _ = scenarios("lists_differ")
    assert len({told["message"] for told in ranks.values()}) == 1
    assert ranks[0]["raised"] == "ValueError"
    assert "number 5 is None here and ('layers.5', (8, 12), None) on rank 0 (5 and 6 in all)" in ranks[0]["message"]
    assert ranks[0]["message"].endswith("(on rank 1 of 3)")


def test_first_process_stops_iterating(scenarios):
    ranks, _ = scenarios("first_leaves")
    assert ranks.pop(0) == {"returned": "left"}
    assert len(ranks) == 2
    assert all("the first process stopped before all was measured" in told["message"] for told in ranks.values())


def test_objects_and_whole_tensors(scenarios):
    ranks, _ = scenarios("objects")
    expected = {"raised": "RuntimeError", "message": "KeyError: 'of rank 1' (on rank 1 of 3; 1 more failed)"}
    assert [ranks[rank] for rank in range(3)] == [expected] * 3
