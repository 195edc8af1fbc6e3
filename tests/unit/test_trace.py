from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger.errors import InputError
from wattledger.records import (
    CostModel,
    CounterReading,
    Device,
    DeviceKind,
    Engine,
    Evidence,
    Finish,
    PinnedCost,
    PowerReading,
    Process,
    ProcessUse,
    RequestTokens,
    StaticBasis,
    Step,
    UseRecord,
)
from wattledger.trace import TraceHeader, decode, encode, read_trace

RECORDS: list[Evidence | TraceHeader] = [
    TraceHeader("h1", 1_790_000_000_000_000_000, "US-CAL-CISO", "boot"),
    Device("gpu0", DeviceKind.GPU, "NVIDIA H200", 70.0, StaticBasis.LEARNED),
    Device("cpu0", DeviceKind.CPU, None, None, StaticBasis.UNKNOWN, 65532610987, True),
    CounterReading("gpu0", -5, 12),
    PowerReading("gpu0", 5, 7),
    UseRecord("gpu0", 0, 9, (ProcessUse(41, 60.0, 10, None), ProcessUse(42, None, None, 3)), 60),
    Process(41, 123, "vllm.service", None),
    Engine("vllm-a", "vllm", "llama", (41, 42)),
    Step("vllm-a", 1, 0, 20, (RequestTokens("r1", 1000, 0, 0), RequestTokens("r2", 0, 1, 512))),
    Step("vllm-a", 2, 20, 20, ()),
    Finish("vllm-a", "r1", 30, 1000, 200, 1),
    PinnedCost("vllm-a", CostModel(40.0, 0.05, 2.0, 0.0, "pinned")),
]
HEADER = '{"type":"header","trace":1,"host":"h1","epoch_ns":1790000000000000000}'
GPU = '{"type":"device","device":"gpu0","kind":"gpu"}'


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_its_line(record: Evidence | TraceHeader) -> None:
    assert decode(encode(record)) == record


def test_the_contracts_own_lines_are_read() -> None:
    step = '{"type":"step","engine":"e","seq":3,"start_ns":28,"end_ns":30,"requests":null}'
    assert decode(step) == Step("e", 3, 28, 30, ())
    device = decode('{"type":"device","device":"gpu0","kind":"gpu","static_w":70.0,"new":1}')
    assert device == Device("gpu0", DeviceKind.GPU, None, 70.0, StaticBasis.GIVEN)


BAD = {
    '{"type":"counter","t_ns":0,"dev': "not JSON",
    "[1]": "not a JSON object",
    '{"type":"joule"}': "unknown line type 'joule'",
    '{"t_ns":0}': "field 'type' is missing",
    '{"type":"counter","t_ns":0,"device":"gpu0"}': "field 'energy_uj' is missing",
    '{"type":"counter","t_ns":0,"device":"gpu0","energy_uj":-1}': "whole number of 0",
    '{"type":"counter","t_ns":0,"device":"gpu0","energy_uj":1.5}': "give a whole number",
    '{"type":"counter","t_ns":true,"device":"gpu0","energy_uj":1}': "give a whole number",
    '{"type":"counter","t_ns":0,"device":"gpu0","energy_uj":9223372036854775808}': "whole number",
    '{"type":"device","device":"","kind":"gpu"}': "give a non-empty text",
    '{"type":"device","device":"x","kind":"tpu"}': "give one of gpu, cpu, dram, node",
    '{"type":"device","device":"x","kind":"gpu","static_w":-1}': "0 or more",
    '{"type":"device","device":"x","kind":"gpu","static_w":1e300}': "up to 1e+09",
    '{"type":"device","device":"x","kind":"gpu","static_w":NaN}': "finite",
    '{"type":"step","engine":"e","seq":1,"start_ns":9,"end_ns":8,"requests":[]}': "ends (8) before",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",-1,0,0]]}': "0",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",4294967296,0,0]]}'
    "": "0 to 2147483647",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",1]]}': "give [id",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",1,0,0],["r",1,0,0]]}'
    "": "stands twice",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r","x",0,0]]}'
    "": "field 'prefill_tokens' is 'x'",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",0,-1,0]]}'
    "": "field 'decode_tokens' is -1",
    '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":8,"requests":[["r",0,0,1.5]]}'
    "": "field 'context_tokens' is 1.5",
    '{"type":"use","start_ns":5,"end_ns":5,"device":"x","processes":[]}': "use of no length",
    '{"type":"process","pid":5,"start":1,"workload":"w\\ud800"}': "surrogate",
    '{"type":"header","trace":2,"host":"h","epoch_ns":1}': "trace version 2",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(line: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(line)
    assert BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40) | st.binary(max_size=40).map(repr))
def test_noise_is_an_input_error_or_a_record(text: str) -> None:
    try:
        decode(text)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), st.lists))
def test_any_value_in_any_field_is_refused_or_read(value: object) -> None:
    for record in RECORDS:
        line = json.loads(encode(record))
        for name in line:
            try:
                decode(json.dumps(line | {name: value}))
            except InputError as error:
                assert "\n" not in str(error)


def a_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "no header line"),
        ((GPU,), "no header line"),
        ((HEADER, HEADER), "line 2: a second header"),
        ((HEADER, GPU, '{"type":"counter"'), "line 3: not JSON"),
        ((HEADER, '{"type":"power","t_ns":0,"device":"g","power_uw":1}'), "line 2: device 'g' has"),
        (
            (HEADER, '{"type":"step","engine":"e","seq":1,"start_ns":0,"end_ns":1}'),
            "line 2: engine 'e' has",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, lines: tuple[str, ...], words: str
) -> None:
    path = a_file(tmp_path, *lines)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="readable trace file"):
            read_trace(path)
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_trace(binary)


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    trace = read_trace(a_file(tmp_path, "\ufeff" + HEADER, "", GPU, ""))
    assert (trace.lines, len(trace.evidence)) == (2, 1)


def counter(t_ns: int) -> str:
    return f'{{"type":"counter","t_ns":{t_ns},"device":"gpu0","energy_uj":0}}'


def test_times_too_far_apart_name_both_lines(tmp_path: Path) -> None:
    days_ns = 400 * 86_400 * 10**9
    path = a_file(tmp_path, HEADER, GPU, counter(days_ns + 1), counter(5), counter(0))
    with pytest.raises(InputError, match=r"lines 5 and 3: .* check the unit of t_ns"):
        read_trace(path)
    assert read_trace(a_file(tmp_path, HEADER, GPU, counter(days_ns), counter(0))).lines == 4
    use = f'{{"type":"use","start_ns":0,"end_ns":{days_ns + 1},"device":"gpu0","processes":[]}}'
    with pytest.raises(InputError, match="lines 3 and 3"):
        read_trace(a_file(tmp_path, HEADER, GPU, use))


@pytest.mark.parametrize("t_ns", [2**63 - 1, 2**63 - 1_790_000_000_000_000_000, -(2**63) + 1])
def test_a_time_that_no_ledger_holds_names_its_line(tmp_path: Path, t_ns: int) -> None:
    header = HEADER if t_ns > 0 else HEADER.replace("1790000000000000000", "0")
    with pytest.raises(InputError, match=r"line 3: epoch_ns .* check the unit"):
        read_trace(a_file(tmp_path, header, GPU, counter(t_ns)))
