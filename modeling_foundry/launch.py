"""``accelerate launch`` that adds nothing to what a run said of its end, and ends with its exit code.

    python -m modeling_foundry.launch --config_file accelerate_configs/ddp.yaml recipes/pretrain.py --config FILE

takes what ``accelerate launch`` takes and starts what it starts.  accelerate itself ends with a traceback of the
launcher and exit code 1 below whatever the ranks said and whatever they ended with.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from .settings import FoundryError, read_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks, wait for them, and answer with the exit code of the first that failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(argv)
    arguments.quiet = False  # which would answer 1 for any code
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # who was stopped for whom
    try:
        if arguments.config_file and not arguments.config_file.endswith(".json"):
            check_accelerate_file(arguments.config_file)
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _ended("the process", error.returncode)
    except ChildFailedError as error:
        rank, code = first_failure(error)
        return _ended(f"rank {rank}", code)
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return 130
    except FoundryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (ValueError, OSError, ImportError) as error:
        words = " ".join(str(error).split())
        print(f"error: accelerate launch: {arguments.config_file or 'its options'}: {words}", file=sys.stderr)
        return 2
    return 0


def check_accelerate_file(path: str) -> None:
    """Raise FoundryError for a value in a YAML file that accelerate would fail on with a traceback, or ignore."""
    if not read_yaml(path):
        raise FoundryError(f"{path}: an empty file; take one of accelerate_configs/")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # as accelerate reads it
    for key in ("num_processes", "num_machines", "machine_rank"):
        if key in content and type(content[key]) is not int:
            raise FoundryError(f"{path}: {key}: expected a whole number, found {content[key]!r}")
    precision = content.get("mixed_precision", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise FoundryError(
            f"{path}: mixed_precision: expected 'no' (in quotes), bf16 or fp16, found {precision!r}"
        )
    is_multi_cpu = content.get("distributed_type") == "MULTI_CPU" and "mpirun_config" not in content
    if is_multi_cpu and content.get("num_processes", 1) > 1:
        raise FoundryError(
            f"{path}: distributed_type: MULTI_CPU starts one process where there is no MPI; expected MULTI_GPU with "
            "use_cpu: true, as in accelerate_configs/cpu_ddp.yaml"
        )


def first_failure(error: object) -> tuple[int, int]:
    """Rank and exit code of the rank that ended first, not of those that the agent stopped for it."""
    failures = error.failures  # type: ignore[attr-defined]
    by_time = sorted(failures, key=lambda rank: failures[rank].timestamp)
    rank = min(by_time, key=lambda rank: failures[rank].exitcode == -signal.SIGTERM)
    return rank, failures[rank].exitcode


def _ended(who: str, code: int) -> int:
    """A process that was killed could not say so itself."""
    if code >= 0:
        return code
    print(f"error: launch: {who} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code


if __name__ == "__main__":
    sys.exit(main())
