"""What a vLLM's engines are called, and which processes each of them is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from wattledger_collectors.engines.vllm_place import Place, core_pids_of, engine_pids, place_of


def config(**parallel: object) -> SimpleNamespace:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        model_config=SimpleNamespace(model="/models/tiny", served_model_name="tiny"),
        scheduler_config=SimpleNamespace(async_scheduling=False),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
    )


def test_a_single_server_is_the_root_of_its_engine() -> None:
    place = place_of(config(data_parallel_size=1, _api_process_count=1), 10, 9)
    assert place == Place(10, 1, "tiny", in_flight=1, recomputes_all=True)
    assert place.engine(0) == "vllm-10"


def test_one_of_several_servers_names_the_engines_after_its_parent() -> None:
    place = place_of(config(data_parallel_size=2, _api_process_count=2), 10, 9)
    assert [place.engine(rank) for rank in (0, 1)] == ["vllm-9.0", "vllm-9.1"]


def test_a_config_that_says_nothing_is_a_single_server_that_schedules_ahead() -> None:
    assert place_of(None, 10, 9) == Place(10, 1, "", in_flight=2, recomputes_all=False)


@pytest.mark.parametrize(("stages", "in_flight"), [(1, 2), (4, 4)])
def test_pipeline_stages_are_steps_in_flight(stages: int, in_flight: int) -> None:
    parallel = SimpleNamespace(pipeline_parallel_size=stages)
    assert place_of(SimpleNamespace(parallel_config=parallel)).in_flight == in_flight


@pytest.mark.parametrize(
    ("served", "expected"), [(["a", "b"], "a"), ("c", "c"), ([], "m"), (None, "m"), (7, "")]
)
def test_the_model_is_the_one_that_metrics_name(served: object, expected: str) -> None:
    model = SimpleNamespace(served_model_name=served, model="m")
    assert place_of(SimpleNamespace(model_config=model)).model == expected


def a_proc(folder: Path, tree: dict[int, tuple[str, list[int]]]) -> Path:
    for pid, (title, children) in tree.items():
        task = folder / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text("".join(f"{child} " for child in children))
        (folder / str(pid) / "cmdline").write_bytes(title.replace(" ", "\0").encode() + b"\0")
    return folder


TITLED = {
    9: ("vllm serve tiny", [20, 21, 30, 40, 41, 50]),
    20: ("VLLM::EngineCore_DP0", [22, 23]),
    21: ("VLLM::EngineCore_DP1", [24]),
    22: ("VLLM::Worker_TP0", []),
    23: ("VLLM::Worker_TP1", []),
    24: ("VLLM::Worker", []),
    30: ("VLLM::DPCoordinator", []),
    40: ("VLLM::APIServer_0", []),
    41: ("VLLM::APIServer_1", [42]),
    42: ("python -c tokenize", []),
    50: ("python -c from multiprocessing.resource_tracker import main", []),
}
UNTITLED = {pid: ("python -c spawn_main", below) for pid, (_, below) in TITLED.items()}


def test_one_engine_is_the_whole_tree(tmp_path: Path) -> None:
    tree = a_proc(tmp_path, TITLED)
    assert engine_pids(Place(9), 0, tree) == tuple(sorted(TITLED))
    assert engine_pids(Place(8), 0, tree) == ()


@pytest.mark.parametrize("tree", [TITLED, UNTITLED])
def test_ranks_share_the_tree_and_nothing_is_left_or_counted_twice(
    tmp_path: Path, tree: dict[int, tuple[str, list[int]]]
) -> None:
    proc, place = a_proc(tmp_path, tree), Place(9, ranks=2)
    first, second = (set(engine_pids(place, rank, proc)) for rank in (0, 1))
    assert first | second == set(tree)
    assert not first & second
    assert {9, 20, 22, 23} <= first
    assert {21, 24} <= second
    assert ({41, 42} <= second) is (tree is TITLED)


def test_a_rank_of_another_host_is_nobody_here(tmp_path: Path) -> None:
    assert engine_pids(Place(9, ranks=4), 3, a_proc(tmp_path, TITLED)) == ()


def test_engines_of_one_process_share_its_children_and_the_first_has_the_rest(
    tmp_path: Path,
) -> None:
    proc, one, two = (
        a_proc(tmp_path, TITLED),
        Place(9, core_pids=(20,)),
        Place(9, number=2, core_pids=(21,)),
    )
    first, second = engine_pids(one, 0, proc, (21,)), engine_pids(two, 0, proc, (20,))
    assert second == (21, 24)
    assert set(first) == set(TITLED) - {21, 24}
    # Nobody can tell what runs in the process itself: it is the first's.
    assert engine_pids(Place(9, number=2), 0, proc, (20,)) == ()
    assert (one.engine(0), two.engine(0)) == ("vllm-9", "vllm-9-2")


@pytest.mark.parametrize("engine", [None, object(), SimpleNamespace(engine_core=3)])
def test_an_engine_without_processes_of_its_own_has_none(engine: object) -> None:
    assert core_pids_of(engine) == ()


@pytest.mark.parametrize(("count", "rank", "server"), [(1, 0, None), (3, 2, 2), (3, -1, 0)])
def test_servers_are_numbered_where_there_are_several(
    count: int, rank: int, server: int | None
) -> None:
    place = place_of(config(_api_process_count=count, _api_process_rank=rank), 10, 9)
    assert place.server == server


def test_a_process_that_ends_meanwhile_is_passed_over(tmp_path: Path) -> None:
    proc = a_proc(tmp_path, {9: ("vllm", [20, 21]), 20: ("VLLM::EngineCore_DP0", [])})
    assert engine_pids(Place(9, ranks=2), 0, proc) == (9, 20, 21)
