"""Checkpoints that are whole or not used: a seal written last, verified before resuming.

Trainer writes ``checkpoint-N`` in place.  :class:`DurableCheckpoints` adds ``manifest.json`` with size and
SHA-256 of each file after every rank has written, and only then removes older checkpoints.  A folder
whose seal is missing or does not verify is set aside and named, never resumed from.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files import settle, sha256_of_file, sync_folder, write_atomically
from ...run_record import masked
from ...settings import FoundryError
from ..processes.endings import SaveFailedError
from ..processes.ranks import wait_for_all_ranks

if TYPE_CHECKING:
    from .parts import CheckpointPart

SEAL_NAME = (
    "manifest.json"  # since the first release: another name would orphan the checkpoints of running runs
)
SEAL_VERSION = 2  # 1 had Trainer's pickles beside the model
RANDOM_STATE = "random_state-"  # one file of each rank
READ_SUFFIXES = (".json", ".safetensors")  # what a resumed run reads
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
logger = logging.getLogger(__name__)


class DurableCheckpoints(TrainerCallback):
    """Seals each checkpoint after Trainer saved it and keeps the newest ``keep`` sealed ones.

    Trainer's own ``save_total_limit`` must be unset: it removes old checkpoints before the new one is
    known to be whole.

    Args:
        keep: number of sealed checkpoints.
        parts: what belongs to the checkpoint beside the model.
        facts: what else the seal says (data fingerprint, sequences per step).
        mark: told before this rank waits for the others, with the step and what it has done (the heartbeat's).
        lasting_steps: steps whose checkpoint is made whatever ``save_steps`` is, and never removed.
    """

    def __init__(
        self,
        keep: int = 2,
        parts: Sequence[CheckpointPart] = (),
        facts: dict[str, Any] | None = None,
        lasting_steps: Collection[int] = (),
        mark: Callable[[int, str], None] = lambda step, doing: None,
    ) -> None:
        if keep < 1:
            raise FoundryError(f"keep_checkpoints: expected at least 1, found {keep}")
        self.keep, self.parts, self.facts = keep, parts, facts or {}
        self.lasting_steps, self.mark = set(lasting_steps), mark

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step in self.lasting_steps and args.save_strategy != "no":
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.mark(state.global_step, "saving, the model done")
        wait_for_all_ranks()  # the first rank makes the folder
        with save_failures(folder.parent):
            self._complete(folder, args, state)

    def _complete(self, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        for part in self.parts:
            part.save(folder)
        self.mark(state.global_step, "saving, its own part done")
        wait_for_all_ranks()  # the other ranks' random states belong to the checkpoint too
        if not state.is_world_process_zero:
            return
        counters = {"global_step": state.global_step, "world_size": args.world_size}
        write_seal(folder, {"version": SEAL_VERSION, **counters, **self.facts})
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        self._remove_older(
            Path(args.output_dir), {*self.lasting_steps, *([step_of(Path(best))] if best else [])}
        )

    def _remove_older(self, output_dir: Path, lasting_steps: Collection[int]) -> None:
        """All but the newest; what has no seal beside a newer one that has was being removed when a run died."""
        sealed = sealed_checkpoints(output_dir)
        for old in checkpoint_folders(output_dir):
            is_half_gone = old not in sealed and step_of(old) < step_of(sealed[0])
            if (old in sealed[self.keep :] or is_half_gone) and step_of(old) not in lasting_steps:
                remove_checkpoint(old)


@contextmanager
def save_failures(output_dir: Path) -> Iterator[None]:
    """Say in one line that a checkpoint could not be written; the run would otherwise end in a traceback."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = masked(" ".join(str(error).split()))
        raise SaveFailedError(
            f"{output_dir}: a checkpoint could not be written, or an older one removed ({reason}); the last whole one "
            "is still there: free some space (torn-checkpoint-* can go) and run the same command again"
        ) from error


def read_seal(folder: Path) -> dict[str, Any]:
    """The seal of a checkpoint.

    Raises:
        FoundryError: it is missing or of another version.
    """
    path = folder / SEAL_NAME
    try:
        seal: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path}: cannot be read ({error}); restore the checkpoint") from error
    if seal.get("version") != SEAL_VERSION:
        raise FoundryError(
            f"{path}: version {seal.get('version')}, this release reads {SEAL_VERSION}; go on with the "
            "release that wrote it, or start again with --overwrite=true"
        )
    return seal


def write_seal(folder: Path, facts: dict[str, Any]) -> None:
    """Flush every file of ``folder`` to disk, then write its seal."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in settle(folder)
        if path.name != SEAL_NAME
    }
    write_atomically(folder / SEAL_NAME, json.dumps({**facts, "files": files}, indent=1) + "\n")
    sync_folder(folder.parent)  # the folder itself is new: older ones go only when it is on the disk


def remove_checkpoint(folder: Path) -> None:
    """Its seal first, so that one removed by half is never taken for damaged; of a link only the link."""
    if folder.is_symlink():
        folder.unlink()
        return
    (folder / SEAL_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(folder.name.rsplit("-", 1)[-1])


def fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when it and every file of it are as its seal says."""
    try:
        seal = json.loads((folder / SEAL_NAME).read_text())
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in seal["files"].items()}
    except FileNotFoundError:
        return f"has no {SEAL_NAME} (the save was cut short)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"has an unreadable {SEAL_NAME}"
    return _fault_of_counters(folder, seal, files) or _fault_of_files(folder, files)


def _fault_of_counters(folder: Path, seal: dict[str, Any], files: Collection[str]) -> str | None:
    step, ranks = seal.get("global_step"), seal.get("world_size")
    if step != step_of(folder):
        return f"is of step {step} by its {SEAL_NAME}"
    num_states = sum(name.startswith(RANDOM_STATE) for name in files)
    if not isinstance(ranks, int) or ranks < 1 or num_states not in (0, ranks):
        return f"has {num_states} random states, but world_size {ranks} in its {SEAL_NAME}"
    return None


def _fault_of_files(folder: Path, files: dict[str, tuple[int, str]]) -> str | None:
    for path in sorted(path for path in folder.iterdir() if path.suffix in READ_SUFFIXES):
        if path.name not in files and path.name != SEAL_NAME:
            return f"holds {path.name}, which its {SEAL_NAME} does not name"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, its seal says {size}"
        if sha256_of_file(path) != digest:
            return f"{name} does not match its SHA-256"
    return None


def sealed_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders with a seal, newest first (contents not verified)."""
    return [folder for folder in checkpoint_folders(output_dir) if (folder / SEAL_NAME).is_file()]


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that verifies; torn ones are renamed ``torn-checkpoint-N`` and named.

    A save that was cut short leaves no seal, and a run may well have nothing else yet: None.

    Raises:
        FoundryError: checkpoints that once were whole have been damaged since, and none is left.
    """
    faulty: list[tuple[Path, str]] = []
    for folder in checkpoint_folders(output_dir):
        reason = fault(folder)
        if reason is None:
            _set_all_aside(faulty)
            return folder
        faulty.append((folder, reason))
    damaged = [f"{folder} {reason}" for folder, reason in faulty if (folder / SEAL_NAME).is_file()]
    if damaged:
        raise FoundryError(
            f"{damaged[0]}, and no other checkpoint is whole; restore it, or start again with --overwrite=true"
        )
    _set_all_aside(faulty)
    return None


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """Every ``checkpoint-N`` of a run, whole or not, newest first."""
    steps = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = CHECKPOINT_PATTERN.fullmatch(path.name)
        if match and path.is_dir():
            steps.append((int(match.group(1)), path))
    return [path for _, path in sorted(steps, reverse=True)]


def _set_all_aside(faulty: list[tuple[Path, str]]) -> None:
    for folder, reason in faulty:
        aside = _set_aside(folder)
        logger.warning("%s %s; set aside as %s", folder, reason, aside.name)


def _set_aside(folder: Path) -> Path:
    target, number = folder.with_name(f"torn-{folder.name}"), 2
    while target.exists():
        target, number = folder.with_name(f"torn-{folder.name}-{number}"), number + 1
    folder.rename(target)
    return target
