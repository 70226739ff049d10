"""Export a finished model as a stock checkpoint with a model card; push it only when told to.

python recipes/publish.py --config recipes/quickstart/publish.yaml
"""

from modeling_foundry import settings


def main() -> None:
    from modeling_foundry.publishing.settings import PublishSettings

    (publish_settings,) = settings.parse(PublishSettings, description=__doc__)
    from modeling_foundry.publishing.pipeline import publish

    publish(publish_settings)


if __name__ == "__main__":
    settings.run(main)
