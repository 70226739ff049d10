"""What a run has read of each source is said when it saves and when it stops."""

from types import SimpleNamespace

import numpy as np
import pytest

from modeling_foundry.data.sequences.mixture import MixedDataset
from modeling_foundry.data.sequences.sample_order import OrderedSamples, SampleOrder
from modeling_foundry.pretraining.mixture_account import MixtureAccount


class Constant:
    """A source of one number."""

    path = "constant"

    def __init__(self, number):
        self.number, self.num_tokens = number, 40_000

    def read(self, start, stop):
        return np.full(stop - start, self.number, dtype=np.uint32)


@pytest.mark.parametrize("step", [1, 37, 211, 300])
def test_a_step_has_read_what_the_line_says(capsys, step):
    order = SampleOrder(16).without(30, 2).without(200, 1)
    data = MixedDataset({"a": Constant(1), "b": Constant(2)}, {"a": 2, "b": 1}, 8, order.num_samples(300))
    account = MixtureAccount(data, order)
    account.on_save(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None)
    account.on_train_end(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None)  # once
    MixtureAccount(data, order).on_save(
        None, SimpleNamespace(is_world_process_zero=False, global_step=1), None
    )
    samples = OrderedSamples(data, order)
    ids = [int(samples[index]["input_ids"][0]) for index in range(16 * step)]
    a, b = 8 * ids.count(1), 8 * ids.count(2)
    share = a / (a + b)
    assert capsys.readouterr().out == (
        f"step {step:,}: mixture: a {a:,} tokens ({share:.2%}, {a / 40_000:.3g} epochs); "
        f"b {b:,} tokens ({1 - share:.2%}, {b / 40_000:.3g} epochs)\n"
    )
