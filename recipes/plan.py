"""What a model will cost, whether it fits, and what to train.  Arithmetic only: answers in a second.

python recipes/plan.py model --model recipes/qwen3_1.8b/pretrain.yaml
python recipes/plan.py model --model config.json --gpu H100 --num_gpus 64 --tokens 1T
"""

from modeling_foundry import settings
from modeling_foundry.planning import commands


def main() -> None:
    commands.main(description=__doc__)


if __name__ == "__main__":
    settings.run(main)
