"""datatrove's readers, with every row accounted for: what is no document is counted and written, with the reason.

``JsonlReader`` logs a broken line and goes on, and a line that is not UTF-8 ends its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.readers import JsonlReader, ParquetReader

from ...settings import FoundryError
from ..sources.file_kinds import compression_of
from ..sources.lines import DamagedFileError, lines_of
from ..sources.parquet_columns import open_parquet
from ..workers.local_folder import ListedFiles

if TYPE_CHECKING:
    from ..workers.stages import RemovedWriter

# Arrow types, by their names, of which JSON has no like.
NO_JSON = ("binary", "decimal", "duration", "interval")


class RowReader:
    """What both readers share: one row in, one document or one malformed row out.

    Statistics of the step: ``rows``, ``malformed:REASON``, and ``text_bytes`` of the documents.
    """

    type = "read"
    data_folder: Any
    text_key: str
    id_key: str
    malformed_writer: RemovedWriter
    _rank = 0

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read this task's files."""
        self._rank = rank
        with self.malformed_writer:
            yield from super().run(data, rank, world_size)  # type: ignore[misc]

    def document_of(self, row: Any, raw: bytes, path: str, number: int) -> Document | None:
        """The document of one parsed row; None where it is malformed, which is noted."""
        reason = self._fault(row)
        if reason:
            self.reject(reason, raw, path, number)
            return None
        self.stat_update("rows")  # type: ignore[attr-defined]
        self.stat_update("text_bytes", value=len(row[self.text_key].encode()))  # type: ignore[attr-defined]
        return self.get_document_from_dict(row, path, number)  # type: ignore[attr-defined]

    def _fault(self, row: Any) -> str | None:
        if not isinstance(row, dict):
            return "not_an_object"
        text = row.get(self.text_key)
        if text is None:
            return "missing_text"
        if not isinstance(text, str):
            return "text_not_a_string"
        return None if text.strip() else "empty_text"

    def reject(self, reason: str, raw: bytes, path: str, number: int) -> None:
        """Note a malformed row; what is not UTF-8 in it is written as ``\\xNN``."""
        self.stat_update("rows", f"malformed:{reason}")  # type: ignore[attr-defined]
        source = f"{path}:{number}"
        text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
        metadata = {"filter_reason": reason, "clean_source": source}
        self.malformed_writer.write(Document(text, source, metadata=metadata), self._rank)


def as_document(self: Any, row: dict[str, Any], path: str, number: int) -> dict[str, Any]:
    """datatrove's adapter of a row: all but text and id is metadata; ``clean_source`` says where it stood."""
    text, identity = row.pop(self.text_key), row.pop(self.id_key, None)
    metadata = row.pop("metadata", {})
    if not isinstance(metadata, dict):
        metadata = {"metadata": metadata}
    metadata = {**metadata, **row, "clean_source": f"{path}:{number}"}
    if "filter_reason" in metadata:  # of an earlier cleaning; ours is written under this name
        metadata["earlier_filter_reason"] = metadata.pop("filter_reason")
    identity = metadata["clean_source"] if identity is None else str(identity)
    return {"text": text, "id": identity, "media": [], "metadata": metadata}


class JsonlRows(RowReader, JsonlReader):
    """JSON lines; rows are counted from 1, as editors do."""

    name = "jsonl"

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The documents of one file.

        Raises:
            FoundryError: the file ends before its compression does, or cannot be read.
        """
        try:
            with self.data_folder.open(filepath, "rb") as file:
                for number, line in enumerate(lines_of(file, compression_of(filepath), filepath), start=1):
                    document = self._read_line(line, filepath, number)
                    if document is not None:
                        yield document
        except (OSError, DamagedFileError) as error:
            raise FoundryError(
                f"{self.data_folder.resolve_paths(filepath)}: cannot be read to its end ({error}); mend or remove it"
            ) from error

    def _read_line(self, line: bytes, path: str, number: int) -> Document | None:
        with self.track_time():
            if not line.strip():
                self.reject("blank_line", line, path, number)
                return None
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                self.reject(_why_no_json(line), line, path, number)
                return None
            return self.document_of(row, line, path, number)


def _why_no_json(line: bytes) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "broken_json"


class ParquetRows(RowReader, ParquetReader):
    """Parquet; rows are counted from 0."""

    name = "parquet"

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The documents of one file.

        Raises:
            FoundryError: it is no Parquet file, or a column cannot be written as JSON.
        """
        from pyarrow import ArrowException

        try:
            with self.data_folder.open(filepath, "rb") as file, open_parquet(file) as parquet:
                _check_columns(parquet.schema_arrow, self.data_folder.resolve_paths(filepath))
                number = 0
                for batch in parquet.iter_batches(batch_size=self.batch_size):
                    for row in _rows_of(batch):
                        if isinstance(row, UnicodeDecodeError):
                            self.reject("invalid_utf8", row.object, filepath, number)
                        elif (document := self._read_row(row, filepath, number)) is not None:
                            yield document
                        number += 1
        except (OSError, ArrowException) as error:
            reason = " ".join(str(error).split())
            raise FoundryError(
                f"{self.data_folder.resolve_paths(filepath)}: cannot be read as Parquet ({reason}); mend or remove it"
            ) from error

    def _read_row(self, row: dict[str, Any], path: str, number: int) -> Document | None:
        return self.document_of(row, repr(row).encode("utf-8", "backslashreplace"), path, number)


def _check_columns(schema: Any, path: str) -> None:
    for column in schema:
        if any(name in str(column.type) for name in NO_JSON):
            raise FoundryError(
                f"{path}: column {column.name} is {column.type}, which JSON cannot hold; drop the column"
            )


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch; pyarrow gives none of them where one is not UTF-8, so those are then taken singly."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_single_row(batch, place) for place in range(batch.num_rows)]
    yield from rows


def _single_row(batch: Any, place: int) -> dict[str, Any] | UnicodeDecodeError:
    try:
        return batch.slice(place, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return error


def reader_of(kind: str, folder: Path, paths_file: Path, text_key: str, id_key: str, writer: Any) -> Any:
    """The step that reads the files listed in ``paths_file``, relative to ``folder``.

    Args:
        kind: ``jsonl`` or ``parquet``.
        writer: where malformed rows go.
    """
    reader_class: Any = {"jsonl": JsonlRows, "parquet": ParquetRows}[kind]
    reader = reader_class(
        ListedFiles(folder, paths_file), adapter=as_document, text_key=text_key, id_key=id_key
    )
    reader.add_file_path = False  # the path on this machine; clean_source says which file of the input it was
    reader.malformed_writer = writer
    return reader
