"""The folder of one run: what it holds, whether that is this very run, and where it goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.sequences.sample_order import check_order, read_order
from ..run_record import RECORD_NAME, plain_settings
from ..settings import FoundryError, neutral_settings
from ..terminal import console
from .checkpoints.checkpoints import newest_whole_checkpoint, read_seal, sealed_checkpoints
from .checkpoints.cleanup import remove_left_overs
from .processes.run_lock import LOCK_NAME

COMPLETE_NAME = "complete.json"
MODEL_FOLDER = "model"
# Arguments of transformers and TRL that change where or how loudly a run works but not what it computes; our own say
# so on their field (``setting(..., neutral=True)``).
NEUTRAL_ARGUMENTS = {
    "output_dir", "logging_steps", "disable_tqdm", "report_to", "run_name", "dataloader_num_workers", "save_steps",
    "log_level", "project", "dataset_num_proc", "logging_first_step", "save_only_model", "ignore_data_skip",
    "use_cpu", "ddp_backend", "dataloader_pin_memory", "hub_token", "trackio_space_id",
}  # fmt: skip
# Settings that only say where something is -> the entry of ``inputs`` that says what it is.  Not ``model``, whose
# tokenizer and chat template no entry holds, nor ``mixture``, whose folders' names are part of the data's hash.
LOCATIONS = {
    "data.data_dir": "inputs.data",
    "data.text_file": "inputs.data",
    "alignment.train_file": "inputs.train_file",
    "alignment.eval_file": "inputs.eval_file",
}
BATCH_SETTINGS = {"per_device_train_batch_size", "gradient_accumulation_steps"}


@dataclass
class RunFolder:
    """A run folder and what the run in it is.

    Args:
        output_dir: ``runs/<experiment>/<stage>``.
        settings: every resolved setting, by dataclass name.
        inputs: what the run reads (data hash, base model hash): a finished run is reused only for the same.
    """

    output_dir: Path
    settings: dict[str, Any]
    inputs: dict[str, Any]
    title: str

    @property
    def model_folder(self) -> Path:
        return self.output_dir / MODEL_FOLDER

    def is_complete(self) -> bool:
        """Whether this very run is finished.

        Raises:
            FoundryError: the folder holds a run with other settings or other inputs, or a finished one without model.
        """
        record = self._stored_record()
        if (
            record is None
            and (checkpoints := sealed_checkpoints(self.output_dir))
            and not self._is_extension()
        ):
            raise FoundryError(
                f"{self.output_dir / RECORD_NAME}: missing, so the settings of {checkpoints[0].name} are not known; "
                "restore it, or give another --output_dir"
            )
        if record is not None and (difference := self.difference_from(record)):
            raise FoundryError(
                f"{self.output_dir}: holds a run with other settings ({difference}); "
                "give another --output_dir, or --overwrite=true to replace it"
            )
        complete = self.output_dir / COMPLETE_NAME
        if record is None or not complete.is_file():
            return False
        if not any(self.model_folder.glob("*.safetensors")):
            raise FoundryError(
                f"{self.model_folder}: no model here, though {COMPLETE_NAME} says that the run is finished; restore "
                f"it, or remove {complete} to write it from the newest checkpoint"
            )
        return True

    def _is_extension(self) -> bool:
        """A longer run begins with another's checkpoint, before it has a record of its own."""
        return getattr(self.settings.get("training"), "extend_run", None) is not None

    def _stored_record(self) -> dict[str, Any] | None:
        path = self.output_dir / RECORD_NAME
        try:
            record = json.loads(path.read_text())
            if not isinstance(record["settings"], dict) or not isinstance(record["inputs"], dict):
                raise TypeError("settings and inputs are tables")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FoundryError(
                f"{path}: cannot be read, or is not valid JSON, or no record of a run; restore it, or give another "
                "--output_dir or --overwrite=true"
            ) from error
        return record

    def difference_from(
        self, record: dict[str, Any], neutral: Collection[str] = (), folder: Path | None = None
    ) -> str:
        """The settings and inputs in which another run's record differs, in words; "" where none does.

        Args:
            neutral: keys that may differ, beside those marked so and ``NEUTRAL_ARGUMENTS``.
            folder: where the record is from, if not from ``output_dir``.
        """
        same_batch = self._steps_read_as_in(folder or self.output_dir)
        neutral = {
            *NEUTRAL_ARGUMENTS,
            *neutral_settings(*self.settings.values()),
            *neutral,
            *(BATCH_SETTINGS if same_batch else ()),
        }
        old = _flat(record.get("settings", {})) | _flat({"inputs": record.get("inputs", {})})
        new = _flat(plain_settings(self.settings)) | _flat({"inputs": plain_settings(self.inputs)})
        changed = [
            f"{key.rsplit('.', 1)[-1]}: {_short(old.get(key))} -> {_short(new.get(key))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            and key.rsplit(".", 1)[-1] not in neutral
            and not _has_only_moved(key, old, new)
        ]
        return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")

    def _steps_read_as_in(self, folder: Path) -> bool:
        """Whether micro-batch x accumulation x ranks is what that run began with, however it is made up."""
        order, arguments = read_order(folder), self.settings.get("training")
        if order is None or arguments is None:
            return False
        sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return order.sequences_per_step == sequences

    def resume_point(self, is_main: bool) -> Path | None:
        """The newest whole checkpoint, verified by rank 0 and told to the others; what killed starts left goes.

        Raises:
            FoundryError: it was trained on other inputs, in another order of samples, or (fine-tuning) by more or
                fewer ranks.
        """
        chosen = [newest_whole_checkpoint(self.output_dir) if is_main else None]
        if chosen[0] is not None:
            self._check_origin(chosen[0])
        if is_main and (removed := remove_left_overs(self.output_dir, chosen[0])):
            console.print(f"{self.title}: {removed}")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def _check_origin(self, checkpoint: Path) -> None:
        seal = read_seal(checkpoint)
        read, reads = seal.get("inputs"), plain_settings(self.inputs)
        if read != reads:
            raise FoundryError(
                f"{checkpoint}: was trained on other inputs ({_short(read)}, now {_short(reads)}); give back what it "
                "read, or start again with --overwrite=true"
            )
        check_order(self.output_dir, seal, checkpoint)
        ranks = self.settings["training"].world_size
        if seal.get("sample_order") is None and seal["world_size"] != ranks:
            raise FoundryError(
                f"{checkpoint}: written by {seal['world_size']} rank(s), and with {ranks} fine-tuning would read "
                f"other samples from here on; start it with {seal['world_size']}"
            )


def discard_run(output_dir: Path) -> None:
    """Remove an earlier run for ``overwrite``; a folder that is not a run's is never removed.

    Raises:
        FoundryError: the folder has checkpoints or a model but no run record.
    """
    if (output_dir / RECORD_NAME).is_file():
        for path in output_dir.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:  # by which this run holds the folder
                path.unlink()
    elif any(output_dir.glob("checkpoint-*")) or (output_dir / MODEL_FOLDER).exists():
        raise FoundryError(
            f"{output_dir}: no run of ours ({RECORD_NAME} is missing), so overwrite leaves it alone; "
            "give another --output_dir"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _has_only_moved(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a flat setting says where the very same content is now."""
    content = LOCATIONS.get(key)
    if content is None or not old.get(key) or not new.get(key):
        return False
    return old.get(content) is not None and old[content] == new.get(content)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
