"""What users call models."""

import pytest

from gptoss.checkpoint import BUNDLED_MODEL
from gptoss.errors import Error
from gptoss.hub import parse
from gptoss.hub.names import KNOWN


@pytest.mark.parametrize(
    ("text", "repo", "revision", "file"),
    [
        ("gpt-oss-20b", "openai/gpt-oss-20b", "main", None),
        ("gpt-oss:20b", "openai/gpt-oss-20b", "main", None),
        ("GPT-OSS:20B", "openai/gpt-oss-20b", "main", None),
        ("gpt-oss", "openai/gpt-oss-20b", "main", None),
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b", "main", None),
        ("gpt-oss-safeguard:20b", "openai/gpt-oss-safeguard-20b", "main", None),
        ("openai/gpt-oss-20b@v1", "openai/gpt-oss-20b", "v1", None),
        ("unsloth/gpt-oss-20b", "unsloth/gpt-oss-20b", "main", None),
        ("hf:owner/name", "owner/name", "main", None),
        ("hf:owner/name@refs/pr/1", "owner/name", "refs/pr/1", None),
        ("hf:owner/name/x-Q8_0.gguf", "owner/name", "main", "x-Q8_0.gguf"),
        ("hf:owner/name/x.gguf@v1", "owner/name", "v1", "x.gguf"),
        ("hf:opnai/gpt-oss-20b", "opnai/gpt-oss-20b", "main", None),
        ("https://huggingface.co/openai/gpt-oss-20b", "openai/gpt-oss-20b", "main", None),
        ("https://huggingface.co/openai/gpt-oss-20b/", "openai/gpt-oss-20b", "main", None),
        ("https://hf.co/openai/gpt-oss-20b/tree/v1", "openai/gpt-oss-20b", "v1", None),
        ("hf.co/openai/gpt-oss-20b", "openai/gpt-oss-20b", "main", None),
        ("huggingface.co/a/b", "a/b", "main", None),
        ("https://huggingface.co/a/b/blob/main/x.gguf", "a/b", "main", "x.gguf"),
        ("https://huggingface.co/a/b/resolve/main/x.gguf?download=true", "a/b", "main", "x.gguf"),
    ],
)
def test_names_of_the_hub(home, text, repo, revision, file):
    found = parse(text)
    assert (found.repo, found.revision, found.file) == (repo, revision, file)
    assert found.name == repo.split("/")[1]


def test_every_known_name_means_its_repository(home):
    for repo, names in KNOWN.items():
        assert {parse(name).repo for name in (repo, *names)} == {repo}


def test_what_exists_goes_first(home, tmp_path):
    work = tmp_path / "work"
    for name in ("gpt-oss-20b", "nano", "owner/name"):
        (work / name).mkdir(parents=True)
        found = parse(name)
        assert found.repo is None and found.path.resolve() == work / name
    assert parse(BUNDLED_MODEL).path == BUNDLED_MODEL
    assert parse("gpt-oss-20b").name == "gpt-oss-20b" and parse(".").name == "work"


def test_the_bundled_model_and_synthetic_ones(home):
    assert parse(None) == parse("nano") and parse("nano").path == BUNDLED_MODEL
    assert parse("synthetic:tiny?seed=1").synthetic == "synthetic:tiny?seed=1"


@pytest.mark.parametrize(
    "text",
    ["./x", "../x", "/x/y", "~/x", "x.gguf", "a/b.safetensors", "a/b/c", "folder/", "a\0b/c", "\0"],
)
def test_paths_with_nothing_there_are_never_asked_for_elsewhere(home, text):
    try:
        assert parse(text).path is not None
    except Error as error:
        assert "found" in str(error)


def test_a_folder_of_ours_that_lacks_one_is_a_path(home, tmp_path):
    (tmp_path / "work" / "runs" / "first").mkdir(parents=True)
    assert parse("runs/second").repo is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("gpt-os-20b", "gpt-oss-20b"),
        ("gptoss-20b", "gpt-oss-20b"),
        ("gpt-oss-20", "gpt-oss-20b"),
        ("gpt-oss:21b", "gpt-oss:20b"),
        ("gpt-oss:120", "gpt-oss:120b"),
        ("nanno", "nano"),
        ("opnai/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("openai/gpt-oss-20", "openai/gpt-oss-20b"),
        ("OpenAi/gptoss-120b", "openai/gpt-oss-120b"),
        ("open-ai/gpt-oss-20b", "openai/gpt-oss-20b"),
    ],
)
def test_a_typo_is_answered_by_the_nearest_name(home, text, meant):
    with pytest.raises(Error, match=rf"nothing is called '{text}': did you mean {meant}\?"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llama",
        "owner/name/",
        "a//b",
        "hf:",
        "hf:owner",
        "hf:owner/../x",
        "hf:a/b@../../x",
        "hf:a/b/../../x.gguf",
        "hf:a/b/.x",
        "hf:a--b/c",
        "https://example.com/openai/gpt-oss-20b",
        "https://huggingface.co/openai",
        "https://huggingface.co/datasets/a/b",
        "file:///etc/passwd",
        "a b/c",
        "-x/y",
        "a" * 300 + "/b",
        "a/b@",
    ],
)
def test_what_is_no_name(home, text):
    with pytest.raises(Error, match="model: (expected|nothing)|nothing at|cannot be read"):
        found = parse(text)
        from gptoss import hub

        hub.find(found.path)


def test_nothing_at_a_path_names_what_lies_beside(home, tmp_path):
    from gptoss import hub

    (tmp_path / "work" / "tuned-model").mkdir()
    with pytest.raises(Error, match="found nothing at tuned-modl; did you mean tuned-model"):
        hub.find("./tuned-modl")
