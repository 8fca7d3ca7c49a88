"""The run directory: a file of it that is removed, renamed or replaced is noticed at the next look, and named."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from serve import settings
from serve.catalog.catalog import Entry
from serve.host.model import ServedModel
from serve.host.run_dir import ALL_EVERY, EVERY, FilesLost, RunDirectory


class Models:
    """A store of two models."""

    def __init__(self, sockets: Path) -> None:
        self.models = {name: model(sockets, name) for name in "ab"}


def model(sockets: Path, name: str) -> ServedModel:
    made = ServedModel(Entry(name=name, path=sockets, archive=False), sockets / f"{name}.sock", 8)
    made.open()
    return made


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Path, RunDirectory, Models]]:
    """A run directory with all that the processes of a server make there, which was looked at once."""
    directory = tmp_path / "r"
    chosen = settings.read({"SERVE_RUN_DIR": str(directory)})
    for each in (chosen.sockets, directory / "body", directory / "proxy", directory / "unpacked"):
        each.mkdir(parents=True)
    for file in ("host.sock", "web.sock", "catalog", "slots", "nginx.conf"):
        (directory / file).touch()
    models = Models(chosen.sockets)
    looks = RunDirectory(chosen, cast(Any, models))
    looks.check()
    yield directory, looks, models
    for served in models.models.values():
        served.listener.close()


def look(looks: RunDirectory, *, after: float = EVERY) -> None:
    looks._looked -= after
    looks._looked_at_all -= after
    looks.check()


def replace(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.touch()


def replace_directory(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "the run directory removed": ("", shutil.rmtree),
    "the run directory renamed": ("", lambda path: path.rename(path.with_name("other"))),
    "the run directory replaced": ("", replace_directory),
    "the sockets removed": ("s", shutil.rmtree),
    "the sockets replaced": ("s", replace_directory),
    "a socket removed": ("s/b.sock", Path.unlink),
    "a socket renamed": ("s/b.sock", lambda path: path.rename(path.with_name("c.sock"))),
    "a socket replaced": ("s/b.sock", replace),
    "the host's socket removed": ("host.sock", Path.unlink),
    "the host's socket replaced": ("host.sock", replace),
    "the web workers' socket removed": ("web.sock", Path.unlink),
    "the catalog removed": ("catalog", Path.unlink),
    "the counters removed": ("slots", Path.unlink),
    "nginx's bodies removed": ("body", Path.rmdir),
    "nginx's answers removed": ("proxy", Path.rmdir),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_gone_is_named(
    watched: tuple[Path, RunDirectory, Models], name: str, damage: Callable[[Path], Any]
) -> None:
    """At the next look, a second later."""
    directory, looks, _ = watched
    look(looks)
    damage(directory / name)
    with pytest.raises(FilesLost, match=str(directory / name)):
        look(looks)


def test_a_socket_that_another_process_closes_to_callers_is_found(watched: tuple[Path, RunDirectory, Models]) -> None:
    """nginx takes it for absent."""
    directory, looks, _ = watched
    (directory / "s" / "a.sock").chmod(0o600)
    look(looks)
    with pytest.raises(FilesLost, match=r"a\.sock.*'a'"):
        look(looks, after=ALL_EVERY)


def test_what_the_server_itself_changes_is_no_loss(watched: tuple[Path, RunDirectory, Models]) -> None:
    """It loads and unloads models, unpacks archives, and its processes make further files and sockets."""
    directory, looks, store = watched
    store.models.pop("b").close()
    look(looks)
    store.models["c"] = model(directory / "s", "c")
    (directory / "new.sock").touch()
    shutil.rmtree(directory / "unpacked")
    (directory / "nginx.conf").unlink()
    look(looks)
    look(looks, after=ALL_EVERY)
    (directory / "new.sock").unlink()
    with pytest.raises(FilesLost, match="new"):
        look(looks)
