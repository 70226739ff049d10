"""Names that the Hub refuses are refused before anything is computed, with the nearest that it takes."""

import pytest

from modeling_foundry.publishing.hub_names import (
    LANGUAGES,
    LICENSES,
    check_language,
    check_license,
    check_repository,
)
from modeling_foundry.publishing.settings import PublishSettings
from modeling_foundry.settings import SettingsError, parse

REQUIRED = "model: m\noutput_dir: o\nname: n\n"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("me/a--b", "me/a-b"), ("me/a..b", "me/a.b"), ("me/ab.git", "me/ab"), ("me/-ab", "me/ab"), ("me/ab.", "me/ab"),
        ("me/" + "x" * 100, "me/" + "x" * 93), ("mé/ab", "m/ab"), ("me/a+b", "me/a-b"), ("-me/ab", "me/ab"),
    ],
)  # fmt: skip
def test_a_repository_of_another_form(name, nearest):
    with pytest.raises(ValueError, match="the Hub refuses") as error:
        check_repository(name)
    assert str(error.value).endswith(f"; did you mean {nearest}?")
    check_repository(nearest)


@pytest.mark.parametrize(
    "name", ["nameonly", "a/b/c", "me/a b", "/b", "a/", "https://huggingface.co/me/ab", ""]
)
def test_what_is_no_owner_and_name(name):
    with pytest.raises(ValueError, match="expected user-or-organisation/name, found"):
        check_repository(name)


@pytest.mark.parametrize("name", ["ada/tiny", "01-ai/Yi-1.5", "Qwen/Qwen3-0.6B", "a/b", "me/a_b.c-d"])
def test_repositories_that_are_taken(name):
    check_repository(name)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("Apache 2.0", "apache-2.0"), ("apache2.0", "apache-2.0"), ("Apache License, Version 2.0", "apache-2.0"),
        ("MIT", "mit"), ("MIT License", "mit"), ("GPLv3", "gpl-3.0"), ("CC BY 4.0", "cc-by-4.0"),
        ("llama 3.1", "llama3.1"),
        ("BSD-3-Clause", "bsd-3-clause"), ("AGPL-3.0-only", "agpl-3.0"), ("Unlicense", "unlicense"),
    ],
)  # fmt: skip
def test_a_licence_in_other_words(given, nearest):
    with pytest.raises(ValueError, match="is no licence identifier of the Hub") as error:
        check_license(given)
    assert f"; did you mean {nearest}?" in str(error.value)


@pytest.mark.parametrize("given", ["proprietary", "", "my own"])
def test_a_licence_like_no_other_is_told_where_all_are(given):
    with pytest.raises(
        ValueError, match=r"all, other and unknown among them: https://huggingface.co/docs/hub"
    ):
        check_license(given)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("English", "en"), ("EN", "en"), ("en-US", "en"), ("zh_CN", "zh"), ("german", "de"), ("Englisch", "en")],
)
def test_a_language_in_other_words(given, nearest):
    with pytest.raises(ValueError, match=f"is no language code of the Hub; did you mean {nearest}?"):
        check_language(given)


@pytest.mark.parametrize("given", ["xx", "python", "e", "", "ENG", "e1"])
def test_what_is_no_language(given):
    with pytest.raises(ValueError, match="ISO 639 in two or three small letters"):
        check_language(given)


def test_what_the_hub_takes():
    assert {"apache-2.0", "mit", "other", "unknown", "openrail++", "llama3.3", "gemma"} <= LICENSES
    for license in LICENSES:
        check_license(license)
    for language in (*LANGUAGES, "code", "multilingual", "eng", "yue"):
        check_language(language)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("repo_id: me/a--b", "repo_id: the Hub refuses 'me/a--b'"),
        ("repo_id: me/ab\nspace_repo_id: me/a--b", "space_repo_id: the Hub refuses"),
        ("base_model: Qwen3-0.6B", "base_model: expected user-or-organisation/name"),
        ("license: Apache 2.0", "license: 'Apache 2.0' is no licence identifier of the Hub; did you mean apache-2.0"),
        ("languages: [en, English]", "languages: 'English' is no language code of the Hub; did you mean en"),
        ("languages: [1]", "languages: '1' is no language code"),
        ('name: "two\\nlines"', "name: expected one line of text"),
        ('name: " "', "name: expected one line of text"),
    ],
)  # fmt: skip
def test_a_recipe_is_refused_as_it_is_read(tmp_path, line, message):
    recipe = tmp_path / "publish.yaml"
    required = REQUIRED if not line.startswith("name") else REQUIRED.replace("name: n\n", "")
    recipe.write_text(f"{required}{line}\n")
    with pytest.raises(SettingsError, match=message) as error:
        parse(PublishSettings, argv=["--config", str(recipe)])
    assert "\n" not in str(error.value)


def test_norwegian_is_no_boolean(tmp_path):
    (tmp_path / "publish.yaml").write_text(f"{REQUIRED}languages: [no, en]\nbase_model: unpublished\n")
    (settings,) = parse(PublishSettings, argv=["--config", str(tmp_path / "publish.yaml")])
    assert (settings.languages, settings.base_model) == (["no", "en"], "unpublished")
