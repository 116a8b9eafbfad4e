"""The comparison of layouts on GPUs, as far as a host without any can run it."""

import json
from pathlib import Path

import compare_on_gpus
import pytest
from compare_on_gpus import ROWS, Reach, Row, main, table

from seesaw.engine.bench.workload import parse_workload
from seesaw.engine.parallel.groups import Layout

OPTIONS = "--executor simulated"
LENGTHS = Path(__file__).parents[2] / "configs" / "lengths" / "sharegpt.csv"


def test_every_system_of_a_row_is_measured_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loads = f"4x32:8,2x{LENGTHS}"
    arguments = [str(tmp_path), "c2", "--workloads", loads, "--systems", "P2->T2:paper,T2+resident"]
    assert main([*arguments, "--options", OPTIONS]) == 0
    out = capfd.readouterr().out
    assert "== c2 P2->T2:paper " in out and "== c2 T2+resident " in out and "of the best static" in out
    report = json.loads((tmp_path / "c2-P2toT2-paper.0.json").read_text())
    assert report["config"]["policy"] == "paper" and report["config"]["decode"] == "T2"
    assert main([*arguments, "--options", OPTIONS]) == 0  # all is there
    again = capfd.readouterr().out
    assert "==" not in again and again == out[out.index("c2  4x32:8") :]
    assert "c2  2xsharegpt.csv" in again


def test_an_unknown_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "c3"])
    assert ended.value.code == 2 and "c2" in capsys.readouterr().err


def test_nothing_starts_without_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "70b-c2", "--within", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("no time left") == 6 and "70b-c2: nothing measured" in out


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_names_what_there_is(row: Row) -> None:
    for system in row.systems:
        flags = compare_on_gpus._layouts(system)
        layouts = [flags[i + 1] for i, flag in enumerate(flags) if flag in ("--prefill", "--decode", "--tail")]
        assert len({Layout.parse(layout).world_size for layout in layouts}) == 1
    for load in row.workloads:
        parse_workload(load)
    for reach in row.reaches:
        assert reach.system in row.systems and reach.workload in row.workloads


def test_the_table_says_shares_reaches_and_idle_time() -> None:
    def figures(rate: float, **seconds: float) -> dict[str, object]:
        rates = {f"{name}_per_second": rate for name in ("requests", "input_tokens", "output_tokens")}
        return rates | {"total_s": 10.0, "transitions": {}, "idle_seconds": seconds, "transition_seconds": {}}

    row = Row((), ("P2->T2", "T2", "P2"), ("4x16:4",), reaches=(Reach("T2", "4x16:4", "requests_per_second", 5),))
    measured = {"P2->T2": figures(6.0, host=0.3, drain=0.05), "T2": figures(4.0), "P2": figures(3.0)}
    lines = table("c2", row, {system: {"4x16:4": f} for system, f in measured.items()})
    assert lines[0] == "c2  4x16:4"
    assert "1.500" in lines[2] and "idle for host 3.0%" in lines[2] and "drain" not in lines[2]
    assert "1.000" in lines[3] and "5: no" in lines[3]
