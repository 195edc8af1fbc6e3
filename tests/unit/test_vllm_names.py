"""No two requests of a vLLM share a name, whoever made it; each keeps the tenant it came with."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import vllm
from fakes.vllm import first
from fakes.vllm_rig import Rig, finishes, one, steps
from wattledger_collectors.engines import tenancy
from wattledger_collectors.engines.events import EventBuffer
from wattledger_collectors.engines.request_names import names_of
from wattledger_collectors.engines.tenancy import Tenancy
from wattledger_collectors.engines.vllm_hook import Hook
from wattledger_collectors.engines.vllm_names import Names


def state(name: str, parent: object = None, index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(external_req_id=name, parent_req=parent, request_index=index)


def test_an_id_sent_again_after_twenty_thousand_others_is_another_request() -> None:
    names = Names()
    told = []
    for _ in range(2):
        for number in range(20_000):
            told.append(names.give(state(f"cmpl-job-{number}-0")))
            names.over(told[-1])
    assert len(set(told)) == 40_000


def test_what_is_remembered_is_bounded_and_a_living_name_is_never_given_away() -> None:
    names = Names(most=3)
    assert names.give(state("a")) == "a"
    for number in range(5):
        names.over(names.give(state(f"b{number}")))
    assert names.give(state("a")) == "a#r1"
    assert names.give(state("b0")) == "b0"
    assert names.give(state("b4")) == "b4#r2"


def test_a_made_name_gives_way_to_a_clients_own() -> None:
    rig = Rig()
    for request_id, name in (("1", "z#r1"), ("2", "z"), ("3", "z"), ("4", "z#0"), ("5", "z#r1")):
        rig.add(request_id, external=name)
    parent = vllm.Parent("z", {"0_z"})
    rig.add("0_z", external="z", parent=parent, index=0)
    rig.step(1.1, *(first(name, 10) for name in ("1", "2", "3", "4", "5", "0_z")))
    (told,) = steps(rig.take())
    assert len(told.parts) == 6


IDS = st.text("a#sr01", max_size=6)


@given(st.lists(st.tuples(IDS, st.integers(0, 2), st.sampled_from((None, 0, 1))), max_size=20))
def test_no_two_of_several_servers_names_are_alike(asks: list[tuple[str, int, int | None]]) -> None:
    servers = [Names(), Names(), Names()]
    for number, names in enumerate(servers):
        names.server = number
    told = [
        servers[server].give(state(name, None if index is None else object(), index or 0))
        for name, server, index in asks
    ]
    assert len(set(told)) == len(told)


def test_a_name_of_another_server_is_found_by_the_clients_id() -> None:
    names = Names()
    names.server = 3
    first_told = names.give(state("chatcmpl-x"))
    again = names.give(state("chatcmpl-x"))
    choice = names.give(state("chatcmpl-x", object(), 1))
    assert (first_told, again, choice) == ("chatcmpl-x#s3", "chatcmpl-x#s3#r1", "chatcmpl-x#1#s3")
    assert all(names_of("x").is_sure(name) for name in (first_told, again, choice))
    assert not any(names_of("y").is_sure(name) for name in (first_told, again, choice))


def test_two_engines_of_one_process_are_two_and_share_no_name() -> None:
    module = vllm.a_module()
    buffers: dict[str, EventBuffer] = {}
    hook = Hook(lambda place, rank: buffers.setdefault(place.engine(rank), EventBuffer()), print)
    hook.attach(module)
    offline = ModuleType("vllm.v1.engine.llm_engine")
    offline.LLMEngine = type("LLMEngine", (vllm.LLMEngine,), {})  # type: ignore[attr-defined]
    hook.attach_offline(offline)
    for model, core in (("small", 41), ("large", 42)):
        config = SimpleNamespace(model_config=SimpleNamespace(served_model_name=model))
        engine = offline.LLMEngine(config, core)
        processor = engine.output_processor
        module.OutputProcessor.add_request(processor, vllm.Request("0", "0", 10), None)
        output = first("0", 10, at_s=None, finish_reason=vllm.FinishReason.STOP)
        module.OutputProcessor.process_outputs(processor, [output], 1.1)
    pid = hook.offline[0].root_pid
    assert list(buffers) == [f"vllm-{pid}", f"vllm-{pid}-2"]
    told = [finishes(buffer.take(99))[0] for buffer in buffers.values()]
    assert [event[1:4:2] for event in told] == [("small", "0"), ("large", "0#r1")]
    assert [hook.other_cores(place) for place in hook.offline] == [(42,), (41,)]
    assert [place.part(0) for place in hook.offline] == ["0", "2.0"]


def test_an_id_that_is_used_again_within_a_batch_keeps_each_its_tenant() -> None:
    noted = Tenancy()
    rig = Rig()
    rig.hook.names = Names(noted.of)
    rig.hook.forget()
    for request_id, tenant in (("1", "acme"), ("2", "beta")):
        noted.note("job", tenant)
        rig.add(request_id, external="chatcmpl-job")
        rig.step(1.1, first(request_id, 10, finish_reason=vllm.FinishReason.STOP))
        noted.over("job")
    names = [event[3] for event in finishes(rig.take())]
    assert [(name, rig.hook.names.tenant(name)) for name in names] == [
        ("chatcmpl-job", "acme"),
        ("chatcmpl-job#r1", "beta"),
    ]


def test_tenants_of_requests_that_ended_make_room_in_the_end() -> None:
    names = Names(lambda name: "acme")
    first_told = names.give(state("a"))
    for number in range(20_000):
        names.over(names.give(state(f"b{number}")))
    names.over(first_told)
    assert names.tenant(first_told) == "acme"
    assert len(names._tenants) == 16_384


def test_the_process_asks_its_own_notes_by_default() -> None:
    from wattledger_collectors.engines.vllm import hook

    tenancy.note("names-1", "acme")
    name = hook().names.give(state("cmpl-names-1-0"))
    tenancy.over("names-1")
    assert hook().names.tenant(name) == "acme"


@pytest.mark.parametrize("faults", [1, 2])
def test_after_a_fault_each_keeps_its_own_name(faults: int) -> None:
    rig = Rig()
    for request_id in ("1", "2"):
        rig.add(request_id, external="y")
    rig.step(1.1, first("1", 10), first("2", 20))
    for _ in range(faults):
        rig.hook._fault(rig.processor, RuntimeError("ours"))
    rig.step(1.2, one("2", 3), one("1"))
    told = steps(rig.take())[-1]
    assert {name: decode for name, (_, decode, _) in told.parts.items()} == {"y": 1, "y#r1": 3}
