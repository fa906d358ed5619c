"""What a forked process may not take with it when it is killed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tqdm import tqdm


@pytest.mark.processes
def test_a_process_killed_while_it_draws_a_bar_holds_no_lock_of_its_parent():
    tqdm.get_lock()  # made with the first bar
    child = os.fork()
    if child == 0:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    other = os.fork()  # it, not this process, waits for ever where the lock is shared
    if other == 0:
        with open(os.devnull, "w") as nowhere:
            list(tqdm(range(2), file=nowhere))
        os._exit(0)
    deadline = time.monotonic() + 20
    while not (ended := os.waitpid(other, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert ended == (other, 0)
