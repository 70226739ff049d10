"""Files that are whole or absent: a crash at any moment leaves the old content or the new.

Their modes are the umask's, as if each had been opened for writing: what writes through a temporary file (we do, and
safetensors does) would leave it to its owner alone, and another user or a container could not read it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from .settings import FoundryError, sought


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a whole file or nothing: temporary file beside it, fsync, rename, fsync of the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8") if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _give_mode(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def settle(folder: str | Path) -> list[Path]:
    """What libraries wrote into a new folder: modes by the umask, content and names on the disk.

    Returns:
        Its files, those of its subfolders too, sorted.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if not path.is_symlink())
    files = [path for path in paths if path.is_file()]
    for path in (Path(folder), *paths):
        _give_mode(path)
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
    return files


def sync_folder(folder: str | Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_mode(path: Path) -> None:
    """The mode that ``open`` and ``mkdir`` give; set only where it differs, for some mounts take none."""
    found = path.stat().st_mode
    wanted = (0o777 if path.is_dir() else 0o666) & ~_umask()
    if found & 0o777 != wanted:
        os.chmod(path, stat.S_IMODE(found) & 0o7000 | wanted)


def _umask() -> int:
    """The umask, read where the system shows it: setting it to read it would open what other threads write."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:", 1)[1].split(None, 1)[0], 8)
    except (OSError, IndexError, ValueError):
        mask = os.umask(0)
        os.umask(mask)
        return mask


def read_lines(path: str | Path, errors: str = "strict") -> list[str]:
    """Lines of a UTF-8 file, without their ends.

    Not ``str.splitlines``: JSON may hold U+0085, U+2028 and U+2029 as they are, and that ends a line at them.

    Args:
        errors: what becomes of bytes that are not UTF-8, as in :func:`open`.
    """
    with open(path, encoding="utf-8", errors=errors) as file:
        return [line.removesuffix("\n") for line in file]


def sha256_of_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(folder: str | Path) -> str:
    """SHA-256 over the weights of a checkpoint folder, to tell one model from another.

    Raises:
        FoundryError: the folder holds no safetensors weights.
    """
    weights = sorted(Path(folder).glob("*.safetensors"))
    if not weights:
        raise FoundryError(
            f"{sought(folder)}: no model here (*.safetensors); run the stage before this one first"
        )
    return "-".join(sha256_of_file(path)[:16] for path in weights)


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice; readers take the last one in silence."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key} twice in one object")
        self.key = key


def object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(..., object_pairs_hook=…)``.

    Raises:
        RepeatedKeyError: naming the first key that is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return found
