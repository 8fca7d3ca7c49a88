"""A server whose run directory is damaged ends with the reason, in place of a 503 for every request without end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.live.conftest import Start
from tests.live.stack import toy, wait_until


def replace(path: Path) -> None:
    path.unlink()
    path.touch()


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "renamed": ("", lambda path: path.rename(path.with_name("away"))),
    "cleaned": ("s", shutil.rmtree),
    "a socket": ("s/tally.sock", Path.unlink),
    "the catalog": ("catalog", Path.unlink),
    "a replaced socket of the web workers": ("web.sock", replace),
}


def test_a_damaged_run_directory_ends_the_server(start: Start, models: Path) -> None:
    """Within seconds, with a status, and with one last line that names the path and the next step."""
    toy(models, "tally")
    servers = {damage: start(models) for damage in DAMAGE}
    for damage, (name, break_it) in DAMAGE.items():
        server = servers[damage]
        assert server.invoke("tally", {"id": damage}).status == 200
        path = server.run_dir / name
        break_it(path)
        wait_until(lambda server=server: server.process.poll() is not None)  # type: ignore[misc]
        assert server.process.returncode == 1
        (gone,) = server.events("files of the server are gone, so it stops")
        assert server.log.rstrip().splitlines()[-1].count(gone["reason"]) == 1
        assert str(path) in gone["reason"]
        assert "SERVE_RUN_DIR" in gone["reason"]
