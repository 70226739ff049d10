"""The settings of each command of ``prepare_data.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..settings import setting
from .manifest import SPLIT


@dataclass
class DataSettings:
    """What prepare_data.py makes and where."""

    output_dir: str = setting("folder to write", "runs/quickstart/data")
    source: Literal["standard_library", "text_file"] = setting(
        "where the text comes from", "standard_library"
    )
    text_file: str | None = setting("plain-text file; implies source: text_file", None)
    vocab_size: int = setting("ids of the tokenizer, special tokens included", 2048)
    held_out_fraction: float = setting("share of module families, or of the text file's end, held out", 0.1)
    include_tests: bool = setting(
        "standard library: its test folders too (31 MB, where they are installed)", False
    )
    max_modules: int | None = setting("standard library: only the first N modules, to try things out", None)
    overwrite: bool = setting("replace a folder prepared with other settings", False)

    def __post_init__(self) -> None:
        if self.text_file is not None:
            self.source = "text_file"
        if self.source == "text_file" and self.text_file is None:
            raise ValueError("text_file: missing; expected a path, because source is text_file")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(
                f"held_out_fraction: expected a number between 0 and 1, found {self.held_out_fraction}"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"vocab_size: expected at least 300 (256 bytes and the special tokens), found {self.vocab_size}"
            )
        if self.max_modules is not None and self.max_modules < 2:
            raise ValueError(f"max_modules: expected at least 2, found {self.max_modules}")


@dataclass
class ManifestSettings:
    """Which files a corpus is made of."""

    source: str | None = setting("folder or fsspec URL (s3://, gs://, hf://) that holds the files", None)
    hub_name: str | None = setting(
        "instead of source: a dataset in the local Hub cache, ORGANIZATION/NAME", None
    )
    revision: str | None = setting("of hub_name; default what main was when it was fetched", None)
    include: str | None = setting("only paths that match this pattern, as in sample/100BT/*", None)
    output: str = setting("manifest to write", "runs/corpus/manifest.jsonl")
    split: str | None = setting("split of every file; default from folder and file names, else train", None)
    held_out_files: int = setting("train files to move to validation, where the corpus has none", 0)
    max_files: int | None = setting("only the first N files, to try things out", None)
    sample_files: int = setting("files of each kind whose rows are counted, for the estimates", 3)
    sha256: bool = setting("hash every file now; without it tokenize records the hashes", False)
    overwrite: bool = setting("replace another manifest", False)

    def __post_init__(self) -> None:
        if self.split is not None and not SPLIT.fullmatch(self.split):
            raise ValueError(f"split: expected letters, digits, - or _, found {self.split!r}")
        for name, lowest in (("held_out_files", 0), ("max_files", 1), ("sample_files", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {value}")


@dataclass
class TokenizeSettings:
    """How the files of a manifest become token shards."""

    manifest: str = setting("written by the manifest command", "runs/corpus/manifest.jsonl")
    output_dir: str = setting("folder to write", "runs/corpus/data")
    tokenizer: str | None = setting("folder with tokenizer.json, or a name in the local Hub cache", None)
    splits: list[str] | None = setting("splits of the manifest to tokenize; default all", None)
    text_key: str = setting("key or column that holds the text", "text")
    eos_token: str | None = setting("end-of-document token; default the tokenizer's eos_token", None)
    add_bos: bool = setting("begin every document with the token AutoTokenizer puts before a text", False)
    engine: Literal["auto", "reference"] = setting("reference: the tokenizers library alone, slower", "auto")
    workers: int = setting("processes on this machine; -1 is one a core", -1)
    executor: Literal["local", "slurm", "ray"] = setting("where datatrove runs the tasks", "local")
    num_tasks: int | None = setting(
        "tasks the files are dealt to; default four a worker on this machine, else one a file, at most 1,000",
        None,
    )
    slurm: dict[str, Any] | None = setting(
        "datatrove's SlurmPipelineExecutor: {partition: cpu, time: 24:00:00}", None
    )
    bad_rows: Literal["skip", "stop"] = setting("rows without usable text: count and go on, or stop", "skip")
    damaged_files: Literal["stop", "keep"] = setting(
        "a file that breaks off: stop when the others are done, or keep what came before the damage", "stop"
    )
    overwrite: bool = setting("replace a corpus of other settings", False)

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers: expected -1 or at least 1, found {self.workers}")
        if self.num_tasks is not None and self.num_tasks < 1:
            raise ValueError(f"num_tasks: expected at least 1, found {self.num_tasks}")
        if self.tokenizer is None:
            raise ValueError("tokenizer: missing; expected a folder with tokenizer.json")
        if self.executor == "slurm" and not {"partition", "time"} <= (self.slurm or {}).keys():
            raise ValueError(
                "slurm: expected at least partition and time, as in {partition: cpu, time: 24:00:00}"
            )


@dataclass
class VerifySettings:
    """Which corpus to check, and against what."""

    data_dir: str = setting("folder written by prepare or tokenize", "runs/corpus/data")
    model: str | None = setting(
        "checkpoint folder or config.json: its embedding must hold every id, its tokenizer be the same", None
    )
    workers: int = setting("threads that hash; -1 is one a core", -1)

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers: expected -1 or at least 1, found {self.workers}")


@dataclass
class InspectSettings:
    """Which corpus to describe."""

    data_dir: str = setting("folder written by tokenize", "runs/corpus/data")
    split: str = setting("split to describe", "train")
    sequence_length: int = setting("tokens of the packed sequence that is shown", 256)
    seed: int = setting("of the shuffle the shown sequence comes from", 0)
    sample_shards: int = setting("shards whose document lengths are read", 200)
    plot: str | None = setting("folder for pictures; none without it", None)
    compare: list[str] | None = setting("other corpora whose tokens are drawn beside this one's", None)

    def __post_init__(self) -> None:
        for name in ("sequence_length", "sample_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass
class ChatSettings:
    """Which public dataset becomes which conversations or preference pairs, and where."""

    dataset: str = setting("alpaca, dolly, oasst1, … or its name on the Hub (docs/data.md lists them)")
    output_dir: str = setting("folder to write")
    file: str | None = setting(
        "local json, jsonl or parquet file of the same columns, instead of the Hub", None
    )
    revision: str | None = setting("commit or branch on the Hub; the newest when not given", None)
    max_samples: int | None = setting("keep N samples, drawn by the seed; all are checked", None)
    validation_fraction: float = setting("share of the samples held out; 0 holds out none", 0.01)
    seed: int = setting("decides the order, the samples kept and those held out", 0)
    system_prompt: str | None = setting("system message of the conversations that have none", None)
    language: str | None = setting("oasst1: only threads in this language, as en or pt-BR", None)
    max_malformed_fraction: float = setting("stop when a larger share of the rows is malformed", 0.05)
    overwrite: bool = setting("replace a folder prepared with other settings", False)

    def __post_init__(self) -> None:
        from .chat_datasets import DATASETS

        by_repository = {dataset.repository.lower(): name for name, dataset in DATASETS.items()}
        self.dataset = by_repository.get(self.dataset.lower(), self.dataset)
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, found {self.dataset!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: expected a number from 0 to below 1, found {self.validation_fraction}"
            )
        if not 0 <= self.max_malformed_fraction <= 1:
            raise ValueError(
                f"max_malformed_fraction: expected a number from 0 to 1, found {self.max_malformed_fraction}"
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples: expected at least 1, found {self.max_samples}")
        if self.seed < 0:  # Python's generator takes -1 for 1
            raise ValueError(f"seed: expected at least 0, found {self.seed}")
        if self.language is not None and DATASETS[self.dataset].convert is not None:
            raise ValueError(f"language: {self.dataset} does not say its rows' language; only oasst1 does")
        if self.file is not None and self.revision is not None:
            raise ValueError("revision: belongs to the Hub; expected none beside file")


@dataclass
class LintSettings:
    """Which samples are checked against which tokenizer and its chat template."""

    file: str = setting("JSON lines: messages (SFT) or prompt, chosen, rejected (preference)")
    tokenizer: str = setting("folder of the tokenizer, or of a model with one")
    chat_template_path: str | None = setting(
        "template of another file (.jinja) or tokenizer folder, as in sft.py", None
    )
    max_length: int = setting("tokens that training keeps of a row", 1024)
    truncation_mode: Literal["keep_start", "keep_end"] = setting(
        "which tokens those are, as in training", "keep_start"
    )
    num_samples: int = setting(
        "rows to render, spread evenly over the file; every row's format is checked", 1000
    )
    kind: Literal["auto", "sft", "preference"] = setting("auto: what the first row is", "auto")
    time_limit_s: float = setting("seconds the template may take for one row", 10.0)
    memory_limit_mb: int = setting("memory the template may take beside the tokenizer", 1024)

    def __post_init__(self) -> None:
        for name in ("max_length", "num_samples", "time_limit_s", "memory_limit_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")


@dataclass
class CleanSettings:
    """What ``prepare_data.py clean`` reads, which steps it takes, and where it writes."""

    input: str = setting("a folder, file or glob of .jsonl (also .gz or .zst) and .parquet", "corpus")
    output_dir: str = setting("folder to write", "runs/clean/data")
    text_key: str = setting("key or column of the text", "text")
    id_key: str = setting("key or column of the id; file and row stand in where there is none", "id")
    filters: list[str] = field(
        default_factory=list, metadata={"help": "datatrove's filters by their short names, in this order"}
    )
    filter_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "other than their defaults: {gopher_quality: {min_doc_words: 20}}"},
    )
    language: str = setting("how words and sentences are split: a language code of datatrove", "eng")
    dedup: Literal["none", "exact", "minhash"] = setting("which duplicates are removed", "none")
    decontaminate: list[str] = field(
        default_factory=list,
        metadata={"help": "JSONL files of evaluation items, and lm-eval tasks of task_dir"},
    )
    decontaminate_mode: Literal["remove", "cut"] = setting(
        "what happens to a document that holds an item", "remove"
    )
    ngram_size: int = setting("words in a row that make a match", 13)
    eval_text_keys: list[str] = field(
        default_factory=lambda: ["text", "question", "answer"],
        metadata={"help": "keys of an evaluation file's text, joined in this order"},
    )
    task_dir: str = setting("folder of lm-eval task files", "eval_tasks")
    workers: int = setting("processes; one takes a file at a time", 1)
    overwrite: bool = setting("replace what was cleaned with other settings", False)

    def __post_init__(self) -> None:
        for name in ("workers", "ngram_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("filters", "decontaminate"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{name}: {twice} is given twice; keep one")
        if not self.eval_text_keys:
            raise ValueError("eval_text_keys: expected at least one key")
