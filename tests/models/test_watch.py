"""What ranks tell of one another, on one store in one process; rank 1 is played by hand."""

import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import Store

from models.expert_parallel import peers, watch
from models.expert_parallel.life import Life, main_place, ranks_behind, silent_ranks
from models.expert_parallel.peers import Peers, _refuse_difference
from models.expert_parallel.watch import Watch

LIVES = st.builds(
    Life, beat=st.integers(0), step=st.integers(0), place=st.text(), failure=st.text(), left=st.booleans()
)


@given(life=LIVES)
def test_a_sign_of_life_survives_the_store(life):
    assert Life.read(life.write().encode()) == life


def test_the_main_threads_place_is_in_our_code():
    with ThreadPoolExecutor(1) as other:
        place = other.submit(main_place).result()
    assert re.fullmatch(r"test_watch.py:\d+ in test_the_main_threads_place_is_in_our_code", place)


def test_silent_are_those_that_do_not_end_by_themselves():
    lives = [Life(), Life(failure="x"), Life(left=True), Life(), Life()]
    assert silent_ranks(lives, [9.0, 9.0, 9.0, 0.1, 5.0], 5.0) == [0, 4]


def test_behind_are_those_with_fewer_collectives():
    assert ranks_behind([Life(calls=7), Life(calls=6), Life(calls=5, failure="x"), Life(calls=7)]) == [1]
    assert ranks_behind([Life(calls=7)] * 3) == []


def test_a_difference_far_into_a_long_value_is_shown():
    value = str(list(range(1000)))
    with pytest.raises(ValueError, match=r"rank 3 was told placement = .*, 776, XXX, .*, rank 0 .*, 776, 777, "):
        _refuse_difference(3, {"placement": value.replace("777", "XXX")}, {"placement": value})


class Place(LightningEnvironment):
    """One of two ranks."""

    def __init__(self, rank, port):
        super().__init__()
        self._global_rank, self._world_size = rank, 2
        self.main_port_is = port

    @property
    def main_port(self):
        return self.main_port_is


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_named(rank, monkeypatch):
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=rf"rank {1 - rank} did not come .*within 1 s"):
        Peers(Place(rank, free_port()), {}, 1.0)


@pytest.fixture(autouse=True)
def exit_codes(monkeypatch):
    """Half a second is long, and what would end this process is noted."""
    for name, seconds in (("BEAT_SECONDS", 0.02), ("SILENT_SECONDS", 0.4), ("GRACE_SECONDS", 0.4)):
        monkeypatch.setattr(watch, name, seconds)
    codes = []

    def note(code):
        codes.append(code)
        # the real one does not return either
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", note)
    return codes


@pytest.fixture
def store():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    store.set("first_failure", "none")
    for rank in (0, 1):
        store.set(f"life/{rank}", Life().write())
    return store


@pytest.fixture
def join(store):
    """A rank of two, watching."""
    joined = []

    def join(rank, timeout_seconds=60.0):
        joined.append(Watch(rank, 2, timeout_seconds, store.clone()))
        joined[-1].start()
        return joined[-1]

    yield join
    for one in reversed(joined):
        one.leave()


def notes(watching, error):
    watching.explain(error)
    return getattr(error, "__notes__", [])


def test_a_rank_without_signs_of_life_is_the_cause(join):
    (note,) = notes(join(0), RuntimeError("connection closed"))
    assert note.startswith("rank 1 gave no sign of life for 0 s: killed or hung; last seen at step 0, ")


def test_what_another_rank_failed_of_is_told_and_not_what_that_made_fail(join):
    mine, other = join(0), join(1)
    assert notes(other, ArithmeticError("not a number")) == []
    expected = ["the first to fail was rank 1: ArithmeticError: not a number"]
    assert notes(mine, RuntimeError("connection closed")) == expected


def test_a_rank_is_behind_once_the_time_is_up(join, monkeypatch):
    monkeypatch.setattr(watch, "num_calls", lambda group: 5)
    mine, _ = join(0, timeout_seconds=0.5), join(1)
    mine.groups = [object()]
    watch.wait(20.0, lambda: mine._own.calls and time.monotonic() - mine._called_at > 0.6)
    (note,) = notes(mine, RuntimeError("timed out"))
    assert note.startswith("rank 1 is behind, at step 0, 0 collectives, in ")


def test_a_rank_that_worked_long_by_itself_is_waited_for_from_when_it_falls_behind(join, monkeypatch, exit_codes):
    monkeypatch.setattr(watch, "num_calls", lambda group: group[0])
    mine, other = join(0, timeout_seconds=1.0), join(1, timeout_seconds=1.0)
    mine.groups, other.groups = [[5]], [[5]]
    watch.wait(20.0, lambda: mine._own.calls == other._own.calls == 5)
    time.sleep(1.2)
    other.groups = [[6]]
    watch.wait(20.0, lambda: mine._lives[1].calls == 6)
    assert mine._findings(60.0) == []
    # but not for ever
    watch.wait(20.0, lambda: mine._findings(60.0))
    (found,) = mine._findings(60.0)
    assert found.startswith("rank 0 is behind, at step 0, 5 collectives")
    watch.wait(20.0, lambda: exit_codes)
    assert exit_codes


def test_a_rank_that_cannot_raise_is_ended(join, exit_codes, capfd):
    join(0, timeout_seconds=0.5)
    watch.wait(20.0, lambda: exit_codes)
    assert exit_codes == [1]
    told = capfd.readouterr().err
    assert "rank 0 is ended: rank 1 gave no sign of life" in told
    assert "in test_a_rank_that_cannot_raise_is_ended" in told


def test_a_rank_that_waits_for_no_one_is_not_ended(join, exit_codes):
    join(0, timeout_seconds=0.5), join(1, timeout_seconds=0.5)
    watch.wait(1.5, lambda: exit_codes)
    assert not exit_codes


class Gone(Store):
    """What is left of a store when rank 0 is gone."""

    def set(self, key, value):
        raise RuntimeError("Broken pipe")


def test_a_store_that_is_gone_tells_of_rank_0():
    alone = Watch(1, 2, 60.0, Gone())
    alone.start()
    assert notes(alone, RuntimeError("connection closed")) == [
        "rank 0's store does not answer: rank 0 was killed or hangs"
    ]
    alone.leave()
