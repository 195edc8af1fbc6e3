from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger.energy_csv import read_energy_csv
from wattledger.errors import InputError
from wattledger.records import Activity, DeviceKind, Quality, StaticBasis

Writer = Callable[[str | bytes], Path]

HEADER = "start,end,host,device,energy_j"
ROW = "2026-10-01T00:00:00Z,2026-10-01T01:00:00Z,h1,gpu0,12.5"
START_NS = 1_790_812_800_000_000_000
HOUR_NS = 3_600_000_000_000


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "meter.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def test_a_minimal_row(write: Writer) -> None:
    read = read_energy_csv(write(f"{HEADER}\n{ROW}\n"))
    (entry,) = read.entries
    assert (read.rows, read.notes) == (1, ())
    assert entry.host == "h1"
    assert (entry.device.device, entry.device.kind, entry.device.model) == (
        "gpu0",
        DeviceKind.GPU,
        None,
    )
    posting = entry.posting
    assert (posting.start_ns, posting.end_ns) == (START_NS, START_NS + HOUR_NS)
    account = posting.account
    assert (account.activity, account.quality) == (Activity.PROCESS, Quality.IMPORTED)
    assert (account.method, account.static_basis) == ("imported", StaticBasis.UNKNOWN)
    amounts = posting.amounts
    assert (amounts.static_uj, amounts.dynamic_uj, amounts.device_ns) == (0, 12_500_000, HOUR_NS)


def test_every_column(write: Writer) -> None:
    read = read_energy_csv(
        write(
            f"{HEADER},kind,device_model,workload,job,engine,model,activity,prefill_tokens,"
            "cached_tokens,decode_tokens,requests,static_j,device_s,quality\n"
            f"{ROW},cpu,EPYC,w,j,e,m,decode,1,2,3,4,2.5,0.5,measured\n"
        )
    )
    (entry,) = read.entries
    account, amounts = entry.posting.account, entry.posting.amounts
    assert (entry.device.kind, entry.device.model) == (DeviceKind.CPU, "EPYC")
    assert (account.workload, account.job, account.engine, account.model) == ("w", "j", "e", "m")
    assert (account.activity, account.quality) == (Activity.DECODE, Quality.MEASURED)
    assert account.static_basis is StaticBasis.GIVEN
    assert (amounts.static_uj, amounts.dynamic_uj) == (2_500_000, 10_000_000)
    assert amounts.device_ns == 500_000_000
    assert (amounts.prefill_tokens, amounts.cached_tokens, amounts.decode_tokens) == (1, 2, 3)
    assert amounts.requests == 4


def test_offsets_boms_blank_lines_and_quotes(write: Writer) -> None:
    text = (
        "device,end,start,energy_j,host,job,remark\r\n"
        'gpu0,2026-10-01T03:00:00+02:00,2026-10-01 00:00:00,0,h1,"a, b","two\nlines"\r\n\r\n'
        "gpu1,2026-10-02,2026-10-01,1e3,h1,,\r\n"
    )
    first, second = read_energy_csv(write(codecs.BOM_UTF8 + text.encode())).entries
    assert first.posting.account.job == "a, b"
    assert first.posting.end_ns - first.posting.start_ns == HOUR_NS
    assert second.posting.account.job is None
    assert second.posting.amounts.energy_uj == 1_000_000_000


def test_rounds_each_cell_half_to_even(write: Writer) -> None:
    rows = "".join(
        f"2026-10-01,2026-10-02,h1,gpu{at},{joules}\n"
        for at, joules in enumerate(("0.0000005", "0.0000015", "0.0000025", "1e-300", "7.1"))
    )
    entries = read_energy_csv(write(f"{HEADER}\n{rows}")).entries
    assert [entry.posting.amounts.energy_uj for entry in entries] == [0, 2, 2, 0, 7_100_000]


def test_equal_rows_are_added_and_told(write: Writer) -> None:
    read = read_energy_csv(write(f"{HEADER}\n{ROW}\n{ROW}\n{ROW.replace('gpu0', 'gpu1')}\n"))
    first, second = read.entries
    assert read.rows == 3
    assert first.posting.amounts.energy_uj == 25_000_000
    # Neither row says a device time: the window is there once.
    assert first.posting.amounts.device_ns == HOUR_NS
    assert second.posting.amounts.energy_uj == 12_500_000
    assert any("1 rows repeat" in line for line in read.notes)


def test_given_device_times_are_added(write: Writer) -> None:
    read = read_energy_csv(write(f"{HEADER},device_s\n{ROW},1\n{ROW},2.5\n"))
    assert read.entries[0].posting.amounts.device_ns == 3_500_000_000


def crowded(write: Writer, *rows: str) -> list[str]:
    read = read_energy_csv(write("\n".join([f"{HEADER},job,device_s", *rows])))
    return [note for note in read.notes if "device time" in note]


def test_overlapping_rows_with_too_much_device_time_are_noted(write: Writer) -> None:
    late = ROW.replace("T00", "T00:30").replace(":30:00:00", ":30:00")
    assert crowded(write, f"{ROW},a,1800", f"{ROW},b,1800") == []
    assert crowded(write, f"{ROW},a,", f"{ROW.replace('gpu0', 'gpu1')},b,") == []
    (note,) = crowded(write, f"{ROW},a,", f"{late},b,1")
    assert "rows of h1 gpu0 have more device time than they cover" in note
    # Slack of another day does not hide it.
    spare = "2026-10-02,2026-10-03,h1,gpu0,1,a,0"
    assert len(crowded(write, f"{ROW},a,1800", spare, f"{ROW},b,1800.5")) == 1


def test_an_unknown_column_is_ignored_and_told(write: Writer) -> None:
    read = read_energy_csv(write(f"{HEADER},rack\n{ROW},r4\n"))
    assert any("rack" in line for line in read.notes)


REFUSED = {
    "empty": ("", "empty file"),
    "no rows": (f"{HEADER}\n", "no rows"),
    "missing column": (f"start,end,host,device\n{ROW}\n", "line 1: missing column 'energy_j'"),
    "misspelt column": (f"{HEADER},static_J\n{ROW},1\n", "did you mean 'static_j'"),
    "column twice": (f"{HEADER},job,job\n{ROW},a,b\n", "'job' twice"),
    "ragged short": (f"{HEADER}\n{ROW}\na,b\n", "line 3: 2 cells"),
    "ragged long": (f"{HEADER}\n{ROW},x\n", "line 2: 6 cells"),
    "negative energy": (f"{HEADER}\n{ROW}\n{ROW[:-4]}-1\n", "line 3: energy_j '-1' is negative"),
    "nan": (f"{HEADER}\n{ROW[:-4]}nan\n", "not a finite number"),
    "signalling nan": (f"{HEADER}\n{ROW[:-4]}sNaN\n", "not a finite number"),
    "infinite": (f"{HEADER}\n{ROW[:-4]}inf\n", "not a finite number"),
    "not a number": (f"{HEADER}\n{ROW[:-4]}12,5\n", "line 2: 6 cells"),
    "words": (f"{HEADER}\n{ROW[:-4]}much\n", "energy_j 'much' is not a number"),
    "too large": (f"{HEADER}\n{ROW[:-4]}1e400\n", "too large"),
    "empty energy": (f"{HEADER}\n{ROW[:-4]}\n", "energy_j is empty"),
    "empty host": (f"{HEADER}\n{ROW.replace('h1', ' ')}\n", "host is empty"),
    "bad time": (f"{HEADER}\n{ROW.replace('2026-10-01T00', '2026-13-01T00')}\n", "line 2: start"),
    "now": (f"{HEADER}\n{ROW.replace('2026-10-01T01:00:00Z', 'now')}\n", "no time of a record"),
    "no length": (f"{HEADER}\n{ROW.replace('T01', 'T00')}\n", "not after start"),
    "backwards": (f"{HEADER}\n{ROW.replace('T00', 'T02')}\n", "not after start"),
    "static above": (f"{HEADER},static_j\n{ROW},12.6\n", "static_j '12.6' is above energy_j"),
    "negative static": (f"{HEADER},static_j\n{ROW},-1\n", "static_j '-1' is negative"),
    "negative tokens": (f"{HEADER},decode_tokens\n{ROW},-1\n", "decode_tokens '-1' is negative"),
    "half a token": (f"{HEADER},decode_tokens\n{ROW},0.5\n", "not a whole number"),
    "negative time": (f"{HEADER},device_s\n{ROW},-1\n", "device_s '-1' is negative"),
    "NUL": (f"{HEADER},job\n{ROW},a\n{ROW},a\0b\n", "line 3: job 'a\\x00b' holds a control"),
    "escape": (f"{HEADER},job\n{ROW},h\x1b[2J\n", "job 'h\\x1b[2J' holds a control"),
    "two lines": (f'{HEADER},model\n{ROW},"a\nb"\n', "line 2: model 'a\\nb' holds a control"),
    "long device": (
        f"{HEADER},device_s\n{ROW},3600\n{ROW},3600.000000001\n",
        "line 3: device_s '3600.000000001' is longer than the row's window",
    ),
    "unknown kind": (f"{HEADER},kind\n{ROW},tpu\n", "use one of gpu, cpu, dram, node"),
    "unknown activity": (f"{HEADER},activity\n{ROW},thinking\n", "use one of prefill"),
    "unknown quality": (f"{HEADER},quality\n{ROW},good\n", "use one of measured"),
    "open quote": (f'{HEADER}\n"{ROW}\n', "line 2: not CSV"),
}


@pytest.mark.parametrize(("text", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line(write: Writer, text: str, told: str) -> None:
    path = write(text)
    with pytest.raises(InputError) as caught:
        read_energy_csv(path)
    message = str(caught.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def test_not_utf8_names_the_line(write: Writer) -> None:
    with pytest.raises(InputError, match="line 3: not UTF-8"):
        read_energy_csv(write(f"{HEADER}\n{ROW}\n".encode() + b"\xff\xfe,1\n"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nowhere.csv: No such file.*: name an"):
        read_energy_csv(tmp_path / "nowhere.csv")


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_microjoules_survive_the_trip(
    tmp_path_factory: pytest.TempPathFactory, energies_uj: list[int]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "meter.csv"
    rows = [
        f"2026-10-01,2026-10-02,h1,gpu{at},{uj // 10**6}.{uj % 10**6:06d}"
        for at, uj in enumerate(energies_uj)
    ]
    path.write_text("\n".join([HEADER, *rows]))
    read = read_energy_csv(path)
    assert [entry.posting.amounts.energy_uj for entry in read.entries] == energies_uj
