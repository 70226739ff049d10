"""Turn text into a tokenizer, token shards and conversation samples.

python recipes/prepare_data.py --config recipes/quickstart/data.yaml
python recipes/prepare_data.py --text_file input.txt --output_dir runs/shakespeare/data
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.data.settings import DataSettings

    (data_settings,) = settings.parse(DataSettings, description=__doc__)
    from modeling_foundry.data.preparation import prepare

    prepare(data_settings)


if __name__ == "__main__":
    settings.run(main)
