"""Processes that start with the libraries imported: each is a fork of one that has imported them and done no more.

A start of torch, transformers and TRL costs nine seconds of a core, and the tests start some two hundred processes.
:class:`Popen` and :func:`run` stand for those of ``subprocess`` where the command is this interpreter's: a process of
its own with its own environment, folder, output, signals and exit code, and so are the ranks that ``accelerate
launch`` and torchrun start in one.  Left out is what an interpreter does before the first line of the script, and what
libraries read from the environment while they are imported; a test of that starts a cold process.
"""

import atexit
import gc
import inspect
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any, NoReturn

# What the recipes have imported when they end; what is not installed is left out.
PRELOADED = (
    "tests.warm_start",
    "modeling_foundry.pretraining.pipeline",
    "modeling_foundry.alignment.pipeline",
    "modeling_foundry.pretraining.commands",
    "modeling_foundry.data.commands",
    "modeling_foundry.evaluation.harness",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "transformers.trainer",
    "accelerate.commands.launch",
    "torch.distributed.run",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.utils.cpp_extension",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "deepspeed",  # accelerate imports it for every run where it is installed
)
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(list(PRELOADED))
_COLD = subprocess.Popen
_is_fork = False


class Popen(_COLD):
    """``subprocess.Popen``; ``[sys.executable, script.py | -m module | -c code, …]`` becomes a fork, all else is cold.

    ``_execute_child``, ``_internal_poll`` and ``_wait`` are private to ``subprocess``: what stands between its pipes
    and a new process has no public place.
    """

    _served: Any = None

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(_COLD._execute_child).bind(self, *given).arguments
        words = _words_of(asked["args"])
        if words is None or asked["preexec_fn"] or asked["shell"] or (_is_fork and not _may_fork(words)):
            super()._execute_child(*given)
            return
        outputs = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        cwd, environment = os.fspath(asked["cwd"] or os.getcwd()), dict(asked["env"] or os.environ)
        if _is_fork:
            self.pid = _fork(words, cwd, environment, outputs, asked["start_new_session"])
        else:
            held = [_Descriptor(number) for number in outputs]
            self._served = _SERVER.Process(target=_serve, args=(words, cwd, environment, held))
            self._served.start()
            self.pid = self._served.pid
        self._child_created = True
        self._close_pipe_fds(
            *(asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )

    def _internal_poll(self, *given: Any, **more: Any) -> int | None:
        if self._served is None:
            return super()._internal_poll(*given, **more)
        self.returncode = self._served.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self._served is None:
            return super()._wait(timeout)
        self._served.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as ``subprocess.run`` with its output captured as text."""
    pipe = subprocess.PIPE
    with Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def serve_elsewhere(address: str) -> None:
    """Run, for as long as this process lives, the commands that other programs send to a socket of this name.

    A message is ``(words after the interpreter, folder, environment)``, the answer ``(exit code, output, errors)``.
    """
    listener = Listener(address)

    def answer(connection: Any) -> None:
        with connection:
            words, cwd, environment = connection.recv()
            done = run([sys.executable, *words], cwd=cwd, env=environment)
            connection.send((done.returncode, done.stdout, done.stderr))

    def serve() -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()


def _words_of(command: Any) -> list[str] | None:
    """The words after the interpreter; None where it is another program's command."""
    if isinstance(command, str | bytes | os.PathLike):
        return None
    first, *words = map(os.fspath, command)
    words = words[1:] if words[:1] == ["-u"] else words
    is_ours = first == sys.executable and words and (words[0] in ("-c", "-m") or words[0].endswith(".py"))
    return words if is_ours else None


class _Descriptor:
    """A file descriptor on its way to the fork; -1 stands for the one that is there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple:
        if self.number == -1:
            return _Descriptor, (-1,)
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


# ------------------------------------------------------------------ in the fork


def _serve(words: list[str], cwd: str, environment: dict[str, str], outputs: list[_Descriptor]) -> None:
    """What the server's fork runs; ``multiprocessing`` ends the process with the exit code."""
    _connect([held.number for held in outputs])
    for held in outputs:
        if held.number > 2:
            os.close(held.number)
    _become(words, cwd, environment)


def _fork(
    words: list[str], cwd: str, environment: dict[str, str], outputs: list[int], new_session: bool
) -> int:
    """Fork this process, which a launcher runs in; returns the rank's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        if new_session:
            os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _connect(outputs)
        os.closerange(3, 4096)  # the launcher's sockets
        resource_tracker._resource_tracker._fd = None
        _become(words, cwd, environment)
        _leave(0)
    except SystemExit as end:
        _leave(end.code)
    finally:  # nothing of the launcher that this process came from is left to run
        os._exit(1)


def _leave(code: str | int | None) -> NoReturn:
    if isinstance(code, str):
        print(code, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(code or 0)


def _connect(outputs: list[int]) -> None:
    for number, given in enumerate(outputs):
        if given not in (-1, number):
            os.dup2(given, number)


def _become(words: list[str], cwd: str, environment: Mapping[str, str]) -> None:
    """Run a command as ``python`` would, to the end of its exit functions."""
    global _is_fork
    _is_fork = True
    gc.freeze()  # what was imported is never looked through again
    _start_forks()
    multiprocessing.set_start_method(None, force=True)  # the server's would be that of its children too
    _SERVER.set_forkserver_preload([])
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()  # or two forks would draw the same names and ports
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    _use_threads(environment)
    try:
        _execute(words)
    except SystemExit:
        raise
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def _execute(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(words[1], None)  # or runpy warns that it was imported before
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _may_fork(words: list[str]) -> bool:
    """The ranks of a launcher, and a module of ours from a process without threads: one of them may hold a lock.

    torchrun's only other thread serves its store.
    """
    program = Path(sys.argv[0])
    is_launcher = program.match("accelerate/commands/*.py") or program.match("modeling_foundry/launch.py")
    is_module = words[0] == "-m" and words[1].startswith("modeling_foundry.")
    return is_launcher or (is_module and len(os.listdir("/proc/self/task")) == 1)


def _start_forks() -> None:
    """What this process starts is forked from it: the ranks of a launcher."""
    subprocess.Popen = Popen  # type: ignore[misc]
    handler = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
    if handler in sys.modules:
        sys.modules[handler].Popen = Popen  # type: ignore[attr-defined]


def _use_threads(environment: Mapping[str, str]) -> None:
    """OpenMP read the environment when torch was loaded."""
    import torch

    asked = int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    if torch.get_num_threads() != asked:  # to set it starts them
        torch.set_num_threads(asked)
