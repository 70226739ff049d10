"""Direct preference optimization of a fine-tuned model (TRL's DPOTrainer).

    python -m modeling_foundry.launch --config_file accelerate_configs/cpu.yaml recipes/dpo.py \\
        --config recipes/quickstart/dpo.yaml
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.alignment.pipeline import AlignmentSettings, DPOArguments, dpo

    dpo(*settings.parse(AlignmentSettings, DPOArguments, description=__doc__))


if __name__ == "__main__":
    settings.run(main)
