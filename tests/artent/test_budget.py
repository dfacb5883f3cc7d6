import math

import pytest
from artent.training.budget import PATIENCE, Budget


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def training(share, every, cost, steps, second=lambda step: 1.0):
    """{step: (seconds measuring, seconds training) after it} of a training whose step takes ``second(step)``, and whose
    measurement number k takes ``cost(k)``; the schedule is the one that the recorder keeps."""
    clock, measured, spent, trained, postponed = Clock(), {}, 0.0, 0.0, None
    budget = Budget(share, every, clock)
    for step in range(steps + 1):
        if step:
            clock.now += second(step)
            trained += second(step)
        if step % every and step != postponed:
            continue
        wait = budget.wait(step)
        postponed = step + wait if wait else None
        if wait:
            continue
        with budget.measurement(step):
            clock.now += cost(len(measured))
        spent += cost(len(measured))
        measured[step] = (spent, trained)
        assert (budget.measuring, budget.training) == pytest.approx((spent, trained))
        assert budget.measurements == len(measured)
    return budget, measured


def test_without_a_limit_all_take_place_and_are_paid_for():
    budget, measured = training(None, 5, lambda k: 2.0, 20)
    assert list(measured) == [0, 5, 10, 15, 20]
    assert (budget.measuring, budget.training, budget.share) == (10.0, 20.0, 0.5)
    assert not budget.too_rare(20)


def test_what_is_due_waits_until_it_can_be_paid_for():
    # 2 s each: the n-th after the first keeps within 10 % once 20 n + 20 s were trained, a second a step.
    _, measured = training(0.1, 5, lambda k: 2.0, 100)
    assert list(measured) == [0, 40, 60, 80, 100]
    # 1.1 s of 3 s a step: 22 s for two, which step 8 brings
    _, measured = training(0.1, 5, lambda k: 1.1, 12, second=lambda step: 3.0)
    assert list(measured) == [0, 8, 11]


CASES = {  # share, every, cost, seconds of a step
    "as predicted": (0.05, 10, lambda k: 0.3, lambda step: 0.5),
    "start-up": (0.05, 10, lambda k: 8.0 if not k else 0.2, lambda step: 0.5),
    "cheap": (0.5, 3, lambda k: 0.01, lambda step: 1.0),
    "slower steps": (0.02, 7, lambda k: 1.0, lambda step: 0.1 + step / 500),
    "faster steps": (0.02, 7, lambda k: 1.0, lambda step: 0.1 + 20 / step),
}


@pytest.mark.parametrize("case", CASES)
def test_the_share_is_kept_and_nothing_waits_longer_than_it_must(case):
    share, every, cost, second = CASES[case]
    _, measured = training(share, every, cost, 1000, second)
    steps = list(measured)
    assert steps[0] == 0
    assert len(steps) > 2
    for k in range(1, len(steps)):
        spent, trained = measured[steps[k]]
        assert spent <= share * trained * (1 + 1e-9)
        due = (steps[k - 1] // every + 1) * every
        if steps[k] > due and "er steps" not in case:  # there the steps to come are guessed from others
            a_step_before = trained - second(steps[k])
            assert measured[steps[k - 1]][0] + cost(k - 1) > share * a_step_before * (1 - 1e-9)
    if case == "cheap":
        assert steps == list(range(0, 1001, every))


def test_a_postponed_one_that_cannot_be_paid_for_yet_waits_again():
    # steps get faster, so that the steps guessed are too few; every guess must be followed by another
    clock = Clock()
    budget = Budget(0.1, 10, clock)
    with budget.measurement(0):
        clock.now += 1.0
    clock.now += 10.0  # ten slow steps
    assert budget.wait(10) == 10  # 20 s are needed, a second a step
    clock.now += 5.0  # ten fast ones
    assert budget.wait(20) == math.ceil(5 / (15 / 20))
    clock.now += 5.0
    assert budget.wait(27) == 0


def test_too_rare_is_told_once_a_measurement_and_not_of_the_first():
    clock = Clock()
    budget = Budget(0.05, 10, clock)

    def cost(step, seconds):
        with budget.measurement(step):
            clock.now += seconds

    longest = (PATIENCE + 1) * 10 * 0.05  # a second a step: what is earned in five intervals
    cost(0, 100.0)  # imports
    clock.now += 10
    assert not budget.too_rare(10)
    cost(10, longest - 1e-6)
    clock.now += 10
    assert not budget.too_rare(20)
    cost(20, longest + 0.1)
    clock.now += 10
    assert budget.too_rare(30)
    clock.now += 10
    assert not budget.too_rare(40)  # the same measurement
    cost(40, longest + 0.1)
    clock.now += 10
    assert budget.too_rare(50)


def test_a_measurement_that_fails_is_paid_for():
    clock = Clock()
    budget = Budget(0.1, 1, clock)

    def interrupted():
        with budget.measurement(0):
            clock.now += 3.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    clock.now += 10.0
    assert (budget.measuring, budget.last, budget.training, budget.share) == (3.0, 3.0, 10.0, 0.3)


def test_a_resumed_training_counts_its_own_steps():
    clock = Clock()
    budget = Budget(0.1, 10, clock)
    with budget.measurement(1000):
        clock.now += 2.0
    clock.now += 10.0
    assert budget.wait(1010) == 30  # 40 s for two, a second a step


def test_bad_shares():
    for share in (0, 1, 1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="share of the training time between 0 and 1"):
            Budget(share)
    for share in ("5%", True):
        with pytest.raises(TypeError, match=r"such as 0\.05"):
            Budget(share)
