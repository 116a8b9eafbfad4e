"""What is timed on which GPU, and that a benchmark's report has it, on the simulated host."""

from __future__ import annotations

import attention_speed
import pytest


def test_what_a_gpu_has_is_timed() -> None:
    hopper, ada = attention_speed.variants((9, 0)), attention_speed.variants((8, 9))
    assert list(hopper) == ["auto", "fa2", "fa3", "portable"] and list(ada) == ["auto", "portable"]
    assert hopper["fa2"] == (["--attention-backend", "fa2"], {})
    assert hopper["portable"] == ([], {"SEESAW_PORTABLE": "1"})


def test_a_row_of_the_table() -> None:
    flags = ["--executor", "simulated", "--attention-backend", "fa2", "--num-device-blocks", "6000"]
    systems = attention_speed.measure(str(attention_speed.CONFIG), flags, {})
    name, *cells = attention_speed.row("fa2", systems)
    assert name == "fa2" and len(cells) == len(attention_speed.PREFILLS) + 2
    assert all(float(cell.replace(",", "")) > 0 for cell in cells)


def test_a_benchmark_that_fails_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        attention_speed.measure("/no/such/config.json", [], {})
    assert ended.value.code == 2 and "cannot read the config file" in capfd.readouterr().err


def test_a_cache_in_8_bits_has_its_own() -> None:
    hopper, ada = (attention_speed.variants(capability, fp8_kv=True) for capability in ((9, 0), (8, 9)))
    assert list(hopper) == ["auto", "fa2"] and list(ada) == ["auto"]
