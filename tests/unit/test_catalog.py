"""Which model a request names, and the errors for names without a model."""

import os
from pathlib import Path

import pytest

from serve.catalog.catalog import Catalog, Entry
from serve.catalog.kinds import TASKS, task_names
from serve.errors import ModelNotFound
from tests.unit.configs import config_of
from tests.unit.processor_time import processor_time_below

EN_DE = "translation_en_to_de"


def entry(name: str, aliases: tuple[str, ...] = (), model_type: str | None = None, task: str | None = None) -> Entry:
    config = config_of("xgboost", Path(name), name=name, aliases=aliases, model_type=model_type, task=task)
    return Entry(name=name, path=Path(name), archive=False, config=config)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("small", "small"),
        ("small.tar.gz", "small"),
        ("small.tgz", "small"),
        ("writer", "small"),
        ("writer.tar.gz", "small"),
        ("bart", "news"),
        ("gpt2", "gpt2"),
        ("t5", "large"),
        ("odd.tar.gz", "odd.tar.gz"),
    ],
)
def test_a_model_is_found_by_name_then_alias_then_type(asked: str, name: str) -> None:
    """With or without .tar.gz. The name `gpt2` comes before the type, the alias `t5` before the type t5."""
    catalog = Catalog(
        [
            entry("small", ("writer",), "gpt2"),
            entry("news", model_type="bart"),
            entry("gpt2", model_type="llama"),
            entry("large", ("t5", "news")),
            entry("other", model_type="t5"),
            entry("odd"),
            entry("odd.tar.gz"),
        ]
    )

    assert catalog.resolve(asked) == name


def test_a_type_that_several_models_have_names_none() -> None:
    """The hint names them."""
    with pytest.raises(ModelNotFound) as caught:
        Catalog([entry("a", model_type="gpt2"), entry("b", model_type="gpt2")]).resolve("gpt2")

    assert caught.value.message == "model not found: 'gpt2'; available: a, b"
    assert caught.value.hint == "several models have the type 'gpt2': a, b; use a name"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_names_the_only_model_that_has_it(task: str) -> None:
    """By each of its names, with any task that another model has; among two models it names none, and both are told."""
    other = "fill-mask" if task != "fill-mask" else "summarization"
    catalog = Catalog([entry("a", task=task), entry("b", model_type="t5", task=other), entry("c")])

    assert {catalog.resolve(name) for name in task_names(task)} == {"a"}
    assert catalog.resolve(f"{task}.tar.gz") == "a"
    for name in task_names(task):
        with pytest.raises(ModelNotFound) as caught:
            Catalog([entry("a", task=task), entry("b", task=task)]).resolve(name)
        assert caught.value.hint == f"several models have the task {name!r}: a, b; use a name"


def test_synonyms_are_one_task() -> None:
    """As in transformers' pipelines; a translation is one from any language into any other."""
    catalog = Catalog([entry("a", task="ner"), entry("b", task="text-classification"), entry("c", task=EN_DE)])

    asked = ("token-classification", "sentiment-analysis", "translation", EN_DE)
    assert [catalog.resolve(each) for each in asked] == ["a", "b", "c", "c"]
    with pytest.raises(ModelNotFound, match="model not found: 'translation'"):
        Catalog([entry("a", task=EN_DE), entry("b", task="translation_de_to_en")]).resolve("translation")


def test_names_aliases_and_types_win_over_tasks() -> None:
    """Whatever the order of the models."""
    named = [entry("summarization"), entry("b", task="summarization")]
    aliased = [entry("a", task="summarization"), entry("b", ("summarization",))]
    typed = [entry("a", task="ner"), entry("b", model_type="ner")]

    assert Catalog(named).resolve("summarization") == "summarization"
    assert Catalog(aliased).resolve("summarization") == "b"
    assert Catalog(typed).resolve("ner") == "b"


@pytest.mark.parametrize("asked", ["gtp2", "GPT2", "gpt.tar.gz", "writter"])
def test_a_near_miss_is_answered_with_a_suggestion(asked: str) -> None:
    """Upper case and letters in the wrong order among them."""
    with pytest.raises(ModelNotFound) as caught:
        Catalog([entry("gpt2", ("writer",)), entry("bart")]).resolve(asked)

    assert caught.value.message == f"model not found: {asked!r}; available: bart, gpt2"
    assert caught.value.hint in ("did you mean 'gpt2'?", "did you mean 'writer'?")


def test_the_error_for_a_missing_model_has_a_limited_length() -> None:
    """For any number of models, any length of names, and any request."""
    catalog = Catalog([entry(f"{n:03}" + "x" * 200) for n in range(900)])

    with processor_time_below(1), pytest.raises(ModelNotFound) as caught:
        catalog.resolve("x" * 1_000_000)

    assert len(caught.value.message) + len(caught.value.hint) < 1200
    assert caught.value.message.endswith(" more")


def test_an_empty_catalog_says_so() -> None:
    """Its error lists no names."""
    with pytest.raises(ModelNotFound, match="model not found: 'a'; the server has no models"):
        Catalog([]).resolve("a")


def test_the_default_is_the_preferred_or_the_only_model() -> None:
    """Resolved as any other name; none among several."""
    several = Catalog([entry("a", ("first",)), entry("b")])

    assert several.default("first") == "a"
    assert several.default() is None
    assert Catalog([entry("a")]).default() == "a"
    assert Catalog([]).default() is None
    with pytest.raises(ModelNotFound):
        several.default("c")


def test_other_processes_read_the_catalog_that_the_host_publishes(tmp_path: Path) -> None:
    """Names, aliases, types, problems, and paths that are not UTF-8; the file appears whole."""
    bad = tmp_path / os.fsdecode(b"\xff")
    host = Catalog(
        [
            entry("a", ("first",), "gpt2"),
            Entry(name="b", path=bad, archive=True),
            Entry(name="c", path=tmp_path, archive=False, problem="model.toml: invalid TOML"),
        ]
    )
    host.publish(tmp_path / "catalog")
    read = Catalog.read(tmp_path / "catalog")

    assert [each.name for each in tmp_path.iterdir()] == ["catalog"]
    assert (read.resolve("first"), read.resolve("gpt2"), read.resolve("b.tar.gz")) == ("a", "a", "b")
    assert (read.entries["b"], read.entries["c"]) == (host.entries["b"], host.entries["c"])
    assert read.entries["a"].config
    assert read.entries["a"].config.aliases == ("first",)
