"""Supervised fine-tuning of a pretrained model on conversations (TRL's SFTTrainer).

    python -m modeling_foundry.launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \\
        --config recipes/quickstart/sft.yaml
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.alignment.pipeline import AlignmentSettings, SFTArguments, sft

    sft(*settings.parse(AlignmentSettings, SFTArguments, description=__doc__))


if __name__ == "__main__":
    settings.run(main)
