"""From text to what training reads: a small corpus in one go, or a large one in steps that can be interrupted.

python recipes/prepare_data.py --config recipes/quickstart/data.yaml
python recipes/prepare_data.py --text_file input.txt --output_dir runs/shakespeare/data
"""

from modeling_foundry import settings
from modeling_foundry.data import commands


def main() -> None:
    commands.main(description=__doc__)


if __name__ == "__main__":
    settings.run(main)
