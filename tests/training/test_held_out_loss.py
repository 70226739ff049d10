"""The held-out loss, by hand from logits, whatever the evaluation batch: SFT, DPO and pretraining."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.losses.held_out_loss import LossSums, num_learned
from modeling_foundry.training.losses.repeated_samples import (
    REPEATED,
    ROW_LENGTHS,
    num_own_samples,
    without_repeated_labels,
    without_repeated_pairs,
)
from tests.training.alignment_runs import trainer_of

ONE_RANK = SimpleNamespace(reduce=lambda tensor, reduction: tensor)


def logps(model, rows):
    """Log-probability of each token of rows (ids, mask), and whether it counts; one row at a time, no padding."""
    told = []
    for ids, counts in rows:
        ids = torch.tensor([ids])
        with torch.no_grad():
            log_probs = F.log_softmax(model(input_ids=ids).logits.float(), -1)[0, :-1]
        token = log_probs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        told.append(token[torch.tensor(counts[1:], dtype=torch.bool)])
    return told


def sft_by_hand(trainer):
    rows = [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in trainer.eval_dataset]
    tokens = torch.cat(logps(trainer.model.eval(), rows))
    return -tokens.double().mean().item()


@pytest.mark.parametrize("changed", [{}, {"assistant_only_loss": False}, {"max_length": 24}])
@pytest.mark.parametrize("batch", [1, 2, 5, 12])
def test_sft_is_a_mean_over_tokens(batch, changed, tiny_checkpoint, uneven, tmp_path):
    trainer = trainer_of(
        "sft", tiny_checkpoint, uneven, tmp_path, num_held_out=12, per_device_eval_batch_size=batch,
        dataloader_drop_last=batch == 5, **changed,
    )  # fmt: skip
    told = trainer.evaluate()
    assert told["eval_loss"] == pytest.approx(sft_by_hand(trainer), rel=1e-5)


def pair_logps(trainer, model):
    sides = []
    for name in ("chosen_ids", "rejected_ids"):
        rows = []
        for row in trainer.eval_dataset:
            ids = row["prompt_ids"] + row[name]
            rows.append((ids[:64], ([0] * len(row["prompt_ids"]) + [1] * len(row[name]))[:64]))
        sides.append(logps(model.eval(), rows))
    return sides


@pytest.mark.parametrize("batch", [1, 2, 5, 12])
def test_dpo_is_a_mean_over_pairs_and_its_sft_part_over_tokens(batch, tiny_checkpoint, uneven, tmp_path):
    trainer = trainer_of(
        "dpo", tiny_checkpoint, uneven, tmp_path, num_held_out=12, per_device_eval_batch_size=batch,
        loss_type=["sigmoid", "sft", "ipo"], loss_weights=[1.0, 0.5, 0.25], beta=0.5,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    told = trainer.evaluate()
    chosen, rejected = pair_logps(trainer, trainer.model)
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    ref_chosen, ref_rejected = pair_logps(trainer, reference)
    gain, loss_ = [
        torch.stack([ours.sum() - theirs.sum() for ours, theirs in zip(*side, strict=True)])
        for side in ((chosen, ref_chosen), (rejected, ref_rejected))
    ]
    sizes = [torch.tensor([len(row) for row in side]) for side in (chosen, rejected)]
    sigmoid = -F.logsigmoid(0.5 * (gain - loss_)).mean()
    ipo = ((gain / sizes[0] - loss_ / sizes[1] - 1 / (2 * 0.5)) ** 2).mean()
    sft = -torch.cat(chosen).mean()
    expected = {
        "eval_loss": sigmoid + 0.5 * sft + 0.25 * ipo,
        "eval_rewards/chosen": 0.5 * gain.mean(),
        "eval_rewards/rejected": 0.5 * loss_.mean(),
        "eval_rewards/margins": 0.5 * (gain - loss_).mean(),
        "eval_rewards/accuracies": (gain > loss_).float().mean(),
        "eval_logps/chosen": torch.stack([row.sum() for row in chosen]).mean(),
        "eval_logps/rejected": torch.stack([row.sum() for row in rejected]).mean(),
    }
    assert {name: told[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_pretraining_is_a_mean_over_tokens(batch, build_trainer):
    """Seven sequences, of which some labels do not count, as behind a document mask."""
    trainer = build_trainer(per_device_eval_batch_size=batch)
    rows = [trainer.train_dataset[index] for index in range(7)]
    held_out = []
    for index, row in enumerate(rows):
        labels = row["input_ids"].clone()
        labels[: 4 * index] = -100
        held_out.append({"input_ids": row["input_ids"], "labels": labels})
    told = trainer.evaluate(held_out)["eval_loss"]
    model = trainer.model.eval()
    tokens = logps(model, [(row["input_ids"].tolist(), (row["labels"] != -100).tolist()) for row in held_out])
    assert told == pytest.approx(-torch.cat(tokens).double().mean().item(), rel=1e-5)


def test_parts_are_summed_apart():
    sums = LossSums()
    sums.add("pairs", torch.tensor(3.0), 2)
    sums.add("tokens", torch.tensor(10.0), torch.tensor(4), weight=0.5)
    sums.add("pairs", torch.tensor(3.0), 1)
    sums.add("tokens", torch.tensor(float("nan")), torch.tensor(0), weight=0.5)
    assert sums.mean(ONE_RANK) == 6 / 3 + 0.5 * 10 / 4


def test_a_mean_of_nothing_is_no_number():
    sums = LossSums()
    sums.add("tokens", torch.tensor(0.0), 0)
    assert sums.mean(ONE_RANK) != sums.mean(ONE_RANK)


def test_the_first_label_of_a_row_is_not_learned():
    assert num_learned(torch.tensor([[7, -100, 8], [9, 9, 9]])) == 3


def trainer_at_the_end(rank, num_samples, ranks=2, drops=False, training=True, is_end=True, split=False):
    """What the functions ask of a trainer that has just been given the last batch."""
    state = SimpleNamespace(
        end_of_dataloader=is_end, active_dataloader=SimpleNamespace(dataset=range(num_samples))
    )
    arguments = SimpleNamespace(
        world_size=ranks, process_index=rank, dataloader_drop_last=drops,
        accelerator_config=SimpleNamespace(even_batches=True, split_batches=split),
    )  # fmt: skip
    return SimpleNamespace(
        args=arguments,
        accelerator=SimpleNamespace(gradient_state=state),
        model=SimpleNamespace(training=training),
    )


@pytest.mark.parametrize("num_samples", range(1, 26))
@pytest.mark.parametrize(("ranks", "per_rank"), [(2, 2), (2, 4), (3, 2), (4, 1)])
def test_own_samples_are_those_accelerate_did_not_repeat(num_samples, ranks, per_rank):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    batches = BatchSampler(SequentialSampler(range(num_samples)), per_rank, drop_last=False)
    shards = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
    read = []
    for rank, shard in enumerate(shards):
        for number, batch in enumerate(shard, start=1):
            trainer = trainer_at_the_end(rank, num_samples, ranks, is_end=number == len(shard))
            read += batch[: num_own_samples(trainer, len(batch), per_rank)]
    assert sorted(read) == list(range(num_samples)), "each once"


def test_a_last_batch_that_training_leaves_out_has_no_repeats():
    assert num_own_samples(trainer_at_the_end(1, 9, drops=True), 2, 2) == 2
    assert num_own_samples(trainer_at_the_end(1, 9, drops=True, training=False), 2, 2) == 0


def test_repeated_rows_laid_flat_are_told_by_their_lengths():
    batch = {"labels": torch.arange(1, 8)[None], ROW_LENGTHS: torch.tensor([3, 4])}
    cut = without_repeated_labels(trainer_at_the_end(0, 5), batch, 2)
    assert cut["labels"].tolist() == [[1, 2, 3, -100, -100, -100, -100]]
    assert ROW_LENGTHS not in cut
    assert batch["labels"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]


def test_repeated_pairs_are_cut_and_one_stays():
    batch = {
        "completion_mask": torch.tensor([[1], [2], [3], [4]]),
        "ref_chosen_logps": torch.tensor([1.0, 2.0]),
    }
    first = without_repeated_pairs(trainer_at_the_end(0, 5), batch, 2)
    assert first["completion_mask"].tolist() == [[1], [3]]
    assert first["ref_chosen_logps"].tolist() == [1.0]
    assert REPEATED not in first
    second = without_repeated_pairs(trainer_at_the_end(1, 5), batch, 2)
    assert second[REPEATED] is True
    assert second["completion_mask"].tolist() == [[1], [3]]


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_loss_that_sorts_its_batch_is_refused_where_the_batch_is_split(
    name, tiny_checkpoint, uneven, tmp_path
):
    def build(**changed):
        return trainer_of("dpo", tiny_checkpoint, uneven, tmp_path, loss_type=[name], **changed)

    with pytest.raises(FoundryError, match=f"loss_type: {name} sorts all pairs of a step, and 1 rank"):
        build(gradient_accumulation_steps=2)
    with pytest.raises(FoundryError, match="give a per_device_eval_batch_size of 7"):
        build(per_device_eval_batch_size=4)
    assert build(per_device_eval_batch_size=7).evaluate()["eval_loss"] > 0


def test_pairs_cannot_weigh_the_loss_of_tokens(tiny_checkpoint, uneven, tmp_path):
    with pytest.raises(FoundryError, match="use_weighting: weights pairs, and sft"):
        trainer_of("dpo", tiny_checkpoint, uneven, tmp_path, loss_type=["sigmoid", "sft"], use_weighting=True)


@pytest.mark.parametrize("metric", ["eval_loss", "eval_rewards/margins"])
def test_the_best_checkpoint_is_chosen_by_what_is_logged(metric, tiny_checkpoint, uneven, tmp_path):
    trainer = trainer_of(
        "dpo", tiny_checkpoint, uneven, tmp_path, per_device_eval_batch_size=2, loss_type=["sigmoid", "sft"],
        num_train_epochs=3, save_strategy="epoch", save_only_model=True, load_best_model_at_end=True,
        metric_for_best_model=metric, greater_is_better=metric != "eval_loss",
    )  # fmt: skip
    trainer.train()
    logged = [line[metric] for line in trainer.state.log_history if metric in line]
    best = min(logged) if metric == "eval_loss" else max(logged)
    assert len(set(logged)) == 3
    assert trainer.state.best_metric == best
    assert trainer.evaluate()[metric] == pytest.approx(best, rel=1e-6)
