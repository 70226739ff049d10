"""Pretrain a model from scratch.

    python -m modeling_foundry.launch --config_file accelerate_configs/cpu.yaml recipes/pretrain.py \\
        --config recipes/quickstart/pretrain.yaml

Any key of the YAML file can be overridden: --normalization=layernorm --learning_rate=3e-4.
What it did, drawn: python recipes/pretrain.py plot --runs runs/quickstart/pretrain
What one step read: python recipes/pretrain.py replay --run_dir runs/quickstart/pretrain --step 12
"""

from modeling_foundry import settings
from modeling_foundry.pretraining import commands


def main() -> None:
    commands.main(description=__doc__)


if __name__ == "__main__":
    settings.run(main)
