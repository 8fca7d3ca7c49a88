"""Which GPUs the server uses, and how much of each."""

import pytest

from serve import devices
from serve.failed_start import FailedStart
from serve.settings import MB, Settings

OUTPUT = "GPU-aa, 81559, 4\nGPU-ab, 81559, 1000\nGPU-mig, [N/A], [N/A]\nGPU-c, 24000, 0\n"


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        pytest.param(None, ["GPU-aa", "GPU-ab", "GPU-c"], id="all that have figures"),
        pytest.param("2, 0", ["GPU-c", "GPU-aa"], id="numbers"),
        pytest.param("GPU-c,GPU-ab", ["GPU-c", "GPU-ab"], id="identities"),
        pytest.param("GPU-a", [], id="an ambiguous beginning"),
        pytest.param("1,-1,0", ["GPU-ab"], id="nothing behind an invalid entry"),
        pytest.param("1,1", ["GPU-ab"], id="each once"),
        pytest.param("", [], id="none"),
    ],
)
def test_the_gpus_of_cuda_visible_devices(chosen: str | None, uuids: list[str]) -> None:
    assert [each.uuid for each in devices.visible(devices.parsed(OUTPUT), chosen)] == uuids


def test_models_may_hold_a_fraction_of_each_gpu_less_what_is_in_use() -> None:
    first, second, third = devices.budgeted(devices.parsed(OUTPUT), Settings(memory_fraction=0.5))
    assert second == ("GPU-ab", 81559 * MB // 2 - 1000 * MB)
    assert [each.bytes // MB for each in (first, third)] == [40775, 12000]


def test_the_budget_of_gpus_is_one_number_or_one_for_each() -> None:
    listed = devices.parsed(OUTPUT)
    one, each = Settings(device_budget_bytes=(5 * MB,)), Settings(device_budget_bytes=(5 * MB, 6 * MB, 7 * MB))
    assert [device.bytes // MB for device in devices.budgeted(listed, one)] == [5, 5, 5]
    assert [device.bytes // MB for device in devices.budgeted(listed, each)] == [5, 6, 7]
    with pytest.raises(FailedStart, match="2 numbers, and 3 GPUs are visible"):
        devices.budgeted(listed, Settings(device_budget_bytes=(5 * MB, 6 * MB)))
