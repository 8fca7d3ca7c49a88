"""The README names every setting and every error, and nothing that is not there."""

import re
from dataclasses import fields
from pathlib import Path

from deploy.command_line import OTHERS
from deploy.spec import Spec
from deploy.verbs import VERBS
from serve import errors
from serve.catalog.model_toml import ModelToml
from serve.errors import ServeError
from serve.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_table_of_settings_is_the_settings() -> None:
    """Each variable of serve/settings.py has a place in the table, and each in the table is read."""
    known = {name for each in fields(Settings) for name, _ in each.metadata.get("sources", ())}
    rows = [line.split("|")[1] for line in section("Settings").splitlines() if line.startswith("| `")]
    told = set(re.findall(r"`([A-Z0-9_]+)`", "".join(rows)))
    assert told == known


def test_the_table_of_errors_is_the_errors() -> None:
    """Each class of serve/errors.py has a row with its status and type."""

    def below(cls: type[ServeError]) -> set[tuple[str, str]]:
        found = {(str(int(cls.status)), cls.type)} if cls is not ServeError else set()
        return found.union(*(below(each) for each in cls.__subclasses__()))

    rows = [line.split("|") for line in section("Errors").splitlines() if re.match(r"\| \d", line)]
    assert {(row[1].strip(), row[2].strip()) for row in rows} == below(errors.ServeError)


def test_the_table_of_model_toml_is_the_card() -> None:
    """Each key, but for `name`, which only a lone model needs."""
    told = set(re.findall(r"^\| `\[?(\w+)\]?`", section("Your models"), re.M))
    assert set(ModelToml.__struct_fields__) - {"name"} <= told


def test_the_tables_of_deploy_are_its_verbs_and_the_spec() -> None:
    """Each verb, and each key at the top of a spec."""
    rows = [line.split("|")[1] for line in section("Deploy").splitlines() if line.startswith("| ")]
    told = set(re.findall(r"`\[*(\w+)", "".join(rows)))
    keys = {each.metadata.get("key", each.name) for each in fields(Spec)}
    assert told | {"pipeline"} == {*VERBS, *OTHERS, *keys}  # of which a section of its own tells
