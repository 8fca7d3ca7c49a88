"""Settings come from the environment, once, checked."""

from pathlib import Path

import pytest

from serve import machine, settings
from serve.settings import MB, BadSetting


def test_defaults_say_that_they_are() -> None:
    """An empty environment is enough."""
    chosen = settings.read({})
    assert (chosen.port, chosen.model_dir, chosen.request_limit) == (8080, Path("/opt/ml/model"), 60.0)
    assert chosen.sources["port"] == "default"
    assert chosen.web_workers >= 1
    assert chosen.budget_bytes > 0


def test_a_value_remembers_its_variable() -> None:
    """The banner prints the source of each value."""
    chosen = settings.read({"SAGEMAKER_BIND_TO_PORT": "9001", "SAGEMAKER_CONTAINER_LOG_LEVEL": "10"})
    assert (chosen.port, chosen.sources["port"]) == (9001, "SAGEMAKER_BIND_TO_PORT")
    assert chosen.log_level == "DEBUG"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "eighty"),
        ("SAGEMAKER_BIND_TO_PORT", "0"),
        ("SERVE_BIND", "localhost"),
        ("SERVE_BIND", "127.0.0.1:8080"),
        ("SERVE_BIND", "fe80::1%eth0"),
        ("SERVE_BIND", "127.0.0.1; include /etc/passwd"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "-1"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "nan"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "LOUD"),
        ("SERVE_MEMORY_FRACTION", "2"),
        ("SERVE_WEB_WORKERS", "1.5"),
    ],
)
def test_a_bad_value_is_named(variable: str, value: str) -> None:
    """The start stops with an error that names the variable and its valid values."""
    with pytest.raises(BadSetting, match=f"{variable}='{value}': invalid value; expected "):
        settings.read({variable: value})


@pytest.mark.parametrize("value", ["false", "0", "yes", "", "True"])
def test_only_true_is_multi_model(value: str) -> None:
    """`SAGEMAKER_MULTI_MODEL=false` leaves the mode off."""
    assert not settings.read({"SAGEMAKER_MULTI_MODEL": value}).multi_model
    assert settings.read({"SAGEMAKER_MULTI_MODEL": "true"}).multi_model


@pytest.mark.parametrize("value", ["true", "True"])
def test_a_batch_is_one_for_the_platform_and_for_the_local_mode(value: str) -> None:
    """AWS's SDK sets True in its local mode."""
    assert settings.read({"SAGEMAKER_BATCH": value}).batch_transform


def test_an_unknown_name_of_ours_is_refused_with_a_suggestion() -> None:
    """A typing mistake does not become a silent default."""
    with pytest.raises(BadSetting, match=r"SERVE_PRELAOD: unknown setting; did you mean SERVE_PRELOAD\?"):
        settings.read({"SERVE_PRELAOD": "x"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 25 * MB),
        ({"SAGEMAKER_BATCH": "true"}, 100 * MB),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, 6 * MB),
        ({"SERVE_MAX_PAYLOAD_MB": "1024"}, 1024 * MB),
        ({"MAX_CONTENT_LENGTH": "1000"}, 1000),
    ],
)
def test_the_body_limit_follows_the_mode(environ: dict[str, str], expected: int) -> None:
    """25 MB real-time, 100 MB in batch, what is asked for otherwise."""
    assert settings.read(environ).payload_bytes == expected


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup file system of our own, this process at its root."""
    monkeypatch.setattr(machine, "_own_cgroup", lambda _controller: [tmp_path])
    return tmp_path


def test_memory_and_processors_come_from_the_cgroup(cgroup: Path) -> None:
    """Version 2: a container of 2 GiB and one and a half processors."""
    (cgroup / "memory.max").write_text(f"{2 << 30}\n")
    (cgroup / "cpu.max").write_text("150000 100000\n")
    assert machine.limit() == (2 << 30, "cgroup")
    assert machine.cpus() == (1, "cgroup")


def test_cgroup_version_1_too(cgroup: Path) -> None:
    """The files have other names, and "no limit" is a huge number."""
    (cgroup / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (cgroup / "cpu.cfs_quota_us").write_text("100000\n")
    (cgroup / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.limit()[1] == "machine"
    assert machine.cpus() == (1, "cgroup")
    (cgroup / "memory.limit_in_bytes").write_text("1073741824\n")
    assert machine.limit() == (1 << 30, "cgroup")


def test_no_limit_means_the_machine(cgroup: Path) -> None:
    """In version 2 `max` means no limit."""
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert machine.limit()[1] == machine.cpus()[1] == "machine"


def test_a_budget_never_vanishes() -> None:
    """In a container smaller than the server's processes a tenth is for models, and the banner shows it."""
    assert (
        machine.budget(4 << 30, 0.9, 2)
        == int((4 << 30) * 0.9) - machine.FORKSERVER - machine.REST - 2 * machine.WEB_WORKER
    )
    assert machine.budget(256 << 20, 0.9, 2) == (256 << 20) // 10


@pytest.mark.parametrize(
    ("given", "listens", "reached_at", "url", "exposed"),
    [
        ("", "127.0.0.1:8080", "127.0.0.1", "localhost:8080", False),
        ("0.0.0.0", "0.0.0.0:8080", "127.0.0.1", "localhost:8080", True),
        ("10.0.0.7", "10.0.0.7:8080", "10.0.0.7", "10.0.0.7:8080", True),
        ("::1", "[::1]:8080", "::1", "[::1]:8080", False),
        ("[::]", "[::]:8080", "::1", "[::1]:8080", True),
        ("2001:DB8:0:0::1", "[2001:db8::1]:8080", "2001:db8::1", "[2001:db8::1]:8080", True),
    ],
)
def test_an_address_to_listen_at(given: str, listens: str, reached_at: str, url: str, exposed: bool) -> None:
    """Of either family, with or without brackets. Without one, only this machine can connect."""
    chosen = settings.read({"SERVE_BIND": given})
    assert (chosen.listens, chosen.reached_at, chosen.url, chosen.exposed) == (
        listens,
        (reached_at, 8080),
        url,
        exposed,
    )
