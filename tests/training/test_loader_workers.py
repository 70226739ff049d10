"""Workers of a data loader: deaf to the signals of a launcher, not to their own process."""

import signal
import subprocess

import pytest
from torch.utils.data import DataLoader

from modeling_foundry.training.processes.loader_workers import leave_signals_to_the_rank


@pytest.fixture
def batches():
    loader = DataLoader(list(range(1000)), batch_size=1, num_workers=1, prefetch_factor=1)
    return iter(leave_signals_to_the_rank(leave_signals_to_the_rank(loader)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_worker_outlives_a_signal_of_another_process(batches, number):
    next(batches)
    (worker,) = batches._workers
    for _ in range(2):
        subprocess.run(["kill", f"-{number.name[3:]}", str(worker.pid)], check=True)
    assert [int(next(batches)) for _ in range(3)] == [1, 2, 3]


def test_its_own_process_ends_a_worker(batches):
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
