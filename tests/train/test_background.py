"""Work in a thread: one piece at a time, waited for, and what goes wrong in it is raised where somebody looks next."""

import threading
import time

import pytest

from unmask.train.background import Background, regularly


def fail():
    raise OSError(28, "No space left on device")


def test_one_piece_at_a_time():
    gate, order = threading.Event(), []

    def first():
        gate.wait(60)
        order.append(1)

    with Background() as background:
        background.start(first)
        background.check()  # waits for nothing
        assert not order
        threading.Timer(0.05, gate.set).start()
        background.start(lambda: order.append(2))
        assert order[0] == 1
    assert order == [1, 2]


@pytest.mark.parametrize("look", [lambda one: one.wait(), lambda one: one.start(print), lambda one: one.__exit__(None, None, None)])
def test_what_goes_wrong_is_raised_once(look):
    background = Background()
    background.start(fail)
    with pytest.raises(OSError, match="No space left"):
        look(background)
    background.wait()


def test_what_has_gone_wrong_is_seen_without_waiting():
    background = Background()
    background.start(fail)

    def look():
        while True:
            background.check()

    with pytest.raises(OSError, match="No space left"):
        look()
    background.check()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_waits_for_it_too_and_stays_the_one_that_is_told(caplog, error):
    gate, done = threading.Event(), []

    def work():
        gate.wait(60)
        done.append(True)
        fail()

    def interrupted():
        with Background() as background:
            background.start(work)
            threading.Timer(0.05, gate.set).start()
            raise error

    with pytest.raises(error):
        interrupted()
    assert done and "No space left" in caplog.text


def test_a_look_is_taken_again_and_again_and_no_more_afterwards():
    looks, twice = [], threading.Event()

    def look():
        looks.append(threading.current_thread().name)
        if len(looks) == 2:
            twice.set()

    with regularly(look, 0.01, "looks"):
        assert twice.wait(10)
    seen = len(looks)
    time.sleep(0.05)
    assert set(looks) == {"looks"} and len(looks) == seen
