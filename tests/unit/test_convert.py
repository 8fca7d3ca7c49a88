"""`python -m serve convert` makes data of what may be code, behind walls that stand."""

import io
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import xgboost
from sklearn import __version__
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from serve.convert import command as convert
from serve.convert import sandbox
from serve.handlers.arrays import sklearn
from serve.handlers.xgboost import dmatrix
from tests.unit.configs import config_of
from tests.unit.test_xgboost_container import VERSIONS, models, same
from tests.unit.warm_child import WarmChildren

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it: two new interpreters."""
    return subprocess.run(
        [sys.executable, "-m", "serve", "convert", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def children() -> Iterator[WarmChildren]:
    made = WarmChildren()
    yield made
    made.close()


@pytest.fixture
def run(children: WarmChildren, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, with a child that has done its imports. Each kind of end has one test of `command`."""

    def converted(*arguments: object) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr("serve.convert.command.subprocess.run", children.run)
            status = convert.run(*(Path(str(each)) for each in arguments))
        return subprocess.CompletedProcess(["convert"], status, *capfd.readouterr())

    return converted


@pytest.fixture(scope="module")
def booster() -> xgboost.Booster:
    return xgboost.train({"nthread": 1, "max_depth": 2}, xgboost.DMatrix(ROWS, ROWS[:, 0]), 3)


def test_a_pickle_becomes_a_model_that_is_only_data(tmp_path: Path, booster: xgboost.Booster, run: Run) -> None:
    """In either of the library's formats; the command says what it wrote."""
    source = tmp_path / "model.pkl"
    source.write_bytes(pickle.dumps(booster))
    for name, convert_with in (("model.ubj", command), ("model.json", run)):
        done = convert_with(source, tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        assert "3 features, 3 rounds; read behind: limits, no new privileges" in done.stdout
        found = xgboost.Booster(model_file=str(tmp_path / name))
        assert np.array_equal(found.predict(xgboost.DMatrix(ROWS)), booster.predict(xgboost.DMatrix(ROWS)))


TRAP = b"cposix\nsystem\n(S'id > sprung'\ntR."


@pytest.mark.peer("xgboost-container")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", ["saved", "pickled"])
def test_a_model_of_reg_linear_is_converted_from_every_version(
    tmp_path: Path, run: Run, version: str, form: str
) -> None:
    """The objective of AWS's Abalone example; the scores are those of the container that made the file."""
    for number, model in enumerate(models(version)):
        if (model.form, model.fact["objective"], model.fact["booster"]) == (form, "reg:linear", "gbtree"):
            (tmp_path / "xgboost-model").write_bytes(model.data)
            done = run(tmp_path / "xgboost-model", tmp_path / f"{number}.ubj")
            assert done.returncode == 0, done.stderr
            booster = xgboost.Booster(model_file=tmp_path / f"{number}.ubj")
            case = next(model.cases())
            rows = dmatrix.read(case.body.encode(), case.content_type, width=case.columns)
            assert same(version, booster.predict(rows).reshape(-1, 1), case.wanted)


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        (TRAP, "model.ubj", "the pickle imports 'posix.system'"),
        (b"hello", "model.ubj", "is not an XGBoost model"),
        (b"hello", "model.pkl", "must end in .ubj or .json"),
        (TRAP, "model.skops", "the pickle names 'posix.system'"),
        (b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93.", "model.skops", "the pickle names 'numpy.os.system'"),
        (pickle.dumps({1, 2}), "model.skops", "the pickle holds 'set', which is not a scikit-learn model"),
        (b"hello", "there.ubj", "exists"),
        (None, "model.ubj", "No such file"),
    ],
    ids=[
        "a trap",
        "no model",
        "a target of another kind",
        "a trap as an estimator",
        "a trap by way of a module",
        "no estimator",
        "a target that is there",
        "no source",
    ],
)
def test_what_cannot_be_converted_is_told_and_nothing_written(
    tmp_path: Path, content: bytes | None, target: str, said: str, run: Run
) -> None:
    """One line, naming the file."""
    (tmp_path / "there.ubj").touch()
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    first = (content, target) == (TRAP, "model.ubj")
    done = (command if first else run)(source, tmp_path / target)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "source" in done.stderr or target in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {each.name for each in tmp_path.iterdir()} <= {"source", "there.ubj"}


def test_a_pickled_estimator_becomes_one_that_is_only_data(tmp_path: Path) -> None:
    """Of joblib or pickle; what is written loads with the types that are trusted, and predicts the same."""
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=3)).fit(ROWS, ROWS[:, 0])
    joblib.dump(model, tmp_path / "model.joblib", compress=3)
    done = command(tmp_path / "model.joblib", tmp_path / "model.skops")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bytes, Pipeline; read behind: limits, no new privileges" in done.stdout
    served = sklearn.load(config_of("sklearn", name="m", directory=tmp_path))
    assert np.array_equal(served.predict(ROWS), model.predict(ROWS))


def test_an_estimator_of_older_libraries_is_read_if_it_can_be(tmp_path: Path, run: Run) -> None:
    """numpy 1 named its arrays otherwise; the version of scikit-learn that made it is told, also where it is needed."""
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=3)).fit(ROWS, ROWS[:, 0])
    new = pickle.dumps(model, protocol=2)  # in which names stand as text
    old = new.replace(b"numpy._core.", b"numpy.core.").replace(__version__.encode(), b"1.2.0")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "old.pkl").write_bytes(old)
    (tmp_path / "gone.pkl").write_bytes(old.replace(b"csklearn.tree._classes\n", b"csklearn.tree.tree\n"))

    done = run(tmp_path / "old.pkl", tmp_path / "model.skops")

    assert done.returncode == 0, done.stderr
    assert "Pipeline, made with scikit-learn 1.2.0: compare its predictions" in done.stdout
    assert np.array_equal(
        sklearn.load(config_of("sklearn", name="m", directory=tmp_path)).predict(ROWS), model.predict(ROWS)
    )
    refused = run(tmp_path / "gone.pkl", tmp_path / "gone.skops")
    assert f"scikit-learn {__version__} cannot read the pickle: ModuleNotFoundError" in refused.stderr
    assert "with scikit-learn==1.2.0 in code/requirements.txt" in refused.stderr


def test_a_missing_target_is_named() -> None:
    """With the usage of the verb, on standard error."""
    done = command("x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert done.stderr.endswith("convert: error: the following arguments are required: TARGET\n")


BOMB = io.BytesIO()
with zipfile.ZipFile(BOMB, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("schema.json", bytes(1 << 24))

REACH = """
import os, socket
attempts = {{
    "write": lambda: open({sprung!r}, "w"), "read": lambda: open("/etc/passwd"), "list": lambda: os.listdir("/"),
    "environment": lambda: open("/proc/self/environ"), "fork": os.fork, "run": lambda: os.execv("/bin/true", ["true"]),
    "tcp": lambda: socket.socket().connect(("127.0.0.1", 9)), "signal": lambda: os.kill(os.getpid(), 0),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "unix": lambda: socket.socket(socket.AF_UNIX),
}}
reached = []
for name, attempt in attempts.items():
    try:
        attempt()
        reached.append(name)
    except PermissionError:
        pass
raise ValueError("it ran, and reached %s" % reached)
"""
FLOOD = """
import os
while True:
    os.write(2, b"\\n\\x1b[2J" + bytes(1 << 16))
"""
FORGERY = """
import os
os.write(1, {bomb!r})
os._exit(0)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (REACH, "ValueError: it ran, and reached []"),
        (FLOOD, "source: ?[2J"),
        (FORGERY, "the result of the sandbox is not a model: its members are larger than the archive"),
    ],
    ids=["reaches out", "floods its log", "forges a result"],
)
def test_a_hostile_pickle_runs_against_the_walls(tmp_path: Path, code: str, said: str, run: Run) -> None:
    """An estimator's pickle may name numpy's own way to run a text, so code of its runs: it gets nowhere."""

    class Trap:
        def __reduce__(self) -> Any:
            return np.testing.runstring, (code.format(sprung=str(tmp_path / "sprung"), bomb=BOMB.getvalue()), {})

    (tmp_path / "source").write_bytes(pickle.dumps(Trap()))
    done = run(tmp_path / "source", tmp_path / "model.skops")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr) < 1000
    assert done.stderr.rstrip("\n").isprintable()
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_a_pickle_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits takes no processor, of which there is a limit too."""
    monkeypatch.setattr(convert, "SECONDS", 0)
    (tmp_path / "source").write_bytes(b"")
    with pytest.raises(ValueError, match=r"source: timeout after 0 s$"):
        convert.converted(tmp_path / "source", tmp_path / "model.ubj")
    assert not (tmp_path / "model.ubj").exists()


WALLS = """
import os, socket, sys
from pathlib import Path
from serve.convert import sandbox
if sys.argv[3] == "alone":  # as under Docker on a kernel without landlock
    sandbox._NAMESPACES, sandbox.landlock.restrict = {}, lambda _: False
if sys.argv[3] == "left out":
    sandbox._filtered = lambda: False
walls = sandbox.enter(1 << 28, 5, 1 << 20)
def refused(attempt):
    try:
        attempt()
    except (OSError, MemoryError):
        return True
    return False
held = []
if sys.argv[3] == "alone" or "landlock" in walls:
    held += [lambda: Path("/etc/passwd").read_text(), lambda: Path(sys.argv[1], "sprung").touch(),
             lambda: os.listdir("/"), lambda: os.execv("/bin/true", ["true"])]
if sys.argv[3] == "alone" or "namespaces" in walls:
    held += [lambda: socket.socket().connect(("127.0.0.1", int(sys.argv[2])))]
if sys.argv[3] == "alone":
    held += [os.fork, lambda: os.kill(os.getpid(), 0), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
held += [lambda: bytearray(1 << 30), lambda: os.write(1, b"x" * (2 << 20)) > 1 << 20 or sys.exit("wrote too much")]
print(all(map(refused, held[:-1])), *walls, file=sys.stderr)
"""


@pytest.mark.parametrize("system_calls", ["with the others", "alone", "left out"])
def test_nothing_is_left_of_files_network_and_memory(tmp_path: Path, system_calls: str) -> None:
    """Each wall the kernel has is there, and tried. The filter of system calls holds by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", WALLS, str(tmp_path), str(listener.getsockname()[1]), system_calls],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.stderr.split()[:4] == ["True", "limits", "no", "new"], done.stderr
    assert done.stderr.endswith(f"{sandbox.SYSTEM_CALLS}\n") == (system_calls != "left out")
    assert not (tmp_path / "sprung").exists()
