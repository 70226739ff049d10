"""Pretrain a model from scratch.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/pretrain.py \
        --config recipes/quickstart/pretrain.yaml

Any key of the YAML file can be overridden: --normalization=layernorm --learning_rate=3e-4.
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.training.model_settings import ModelSettings
    from modeling_foundry.training.pretraining import PretrainArguments, PretrainDataSettings, pretrain

    kinds = (ModelSettings, PretrainDataSettings, PretrainArguments)
    pretrain(*settings.parse(*kinds, description=__doc__))


if __name__ == "__main__":
    settings.run(main)
