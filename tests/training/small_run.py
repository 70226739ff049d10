"""A whole pretraining run of six tiny steps in this process, for tests of what a run folder holds."""

import shutil
from pathlib import Path

from modeling_foundry.data.preparation.pipeline import prepare
from modeling_foundry.data.preparation.settings import DataSettings
from modeling_foundry.pretraining.model_settings import ModelSettings
from modeling_foundry.pretraining.pipeline import PretrainArguments, PretrainDataSettings, pretrain
from tests.conftest import SOURCE_TEXT

STEPS, CUT = 6, 4  # the last step, and the checkpoint before it


def prepare_data(folder: Path, content: str = SOURCE_TEXT) -> Path:
    """Tokens of one text, 320 ids; returns the folder."""
    text = folder.with_name(f"{folder.name}.txt")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(content)
    prepare(DataSettings(str(folder), text_file=str(text), vocab_size=320))
    return folder


def train(output_dir: Path, data_dir: Path, z_loss_weight: float = 0.0, **changed) -> Path:
    """Run the stage with dropout on, four sequences of 32 tokens a step; returns the folder of its model."""
    model = ModelSettings(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, loss_chunk_tokens=64,
        attention_dropout=0.1, z_loss_weight=z_loss_weight,
    )  # fmt: skip
    given = {
        "output_dir": str(output_dir), "per_device_train_batch_size": 4, "max_steps": STEPS, "save_steps": 2,
        "use_cpu": True, "logging_steps": 1, "report_to": "none", "seed": 7,
    }  # fmt: skip
    data = PretrainDataSettings(data_dir=str(data_dir), sequence_length=32)
    return pretrain(model, data, PretrainArguments(**(given | changed)))


def cut(run: Path, target: Path) -> Path:
    """A copy of a finished run as a kill after checkpoint ``CUT`` would have left it."""
    shutil.copytree(run, target, symlinks=True)
    for name in (f"checkpoint-{STEPS}", "model"):
        shutil.rmtree(target / name)
    (target / "complete.json").unlink()
    return target
