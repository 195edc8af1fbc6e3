from __future__ import annotations

from wattledger.records import NS_PER_S, Device, DeviceKind, Quality, SelfMetric
from wattledger_daemon.health import DeviceHealth, EngineHealth, Snapshot, Work
from wattledger_daemon.sampling import SensorHealth, SensorState
from wattledger_daemon.selfmetrics import Notes, OwnCost, own_cost, self_metrics

GPU = Device("gpu0", DeviceKind.GPU)


def an_engine(name: str, dropped: int = 0) -> EngineHealth:
    return EngineHealth(name, "vllm", "m", (1,), 0, 0, 0, dropped, 0, 0, 0)


def told(snapshot: Snapshot, rss_bytes: int = 50_000_000) -> dict[str, float]:
    metrics = self_metrics(7, snapshot, OwnCost(1.5, rss_bytes))
    assert {metric.t_ns for metric in metrics} == {7}
    keys = [f"{metric.part} {metric.name}" for metric in metrics]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, (metric.value for metric in metrics), strict=True))


def test_everything_that_the_daemon_knows_of_itself_is_told() -> None:
    sensor = SensorHealth("nvml", SensorState.RUNNING, "", 9, 2, 0.1, 0.4, 3, 1, 0.1)
    snapshot = Snapshot(
        0,
        (DeviceHealth(GPU, 1.0, Quality.MEASURED, 4, 5, 0.98),),
        (an_engine("bad", dropped=6), an_engine("good")),
        (sensor, SensorHealth("rapl", SensorState.ABSENT, "none", 0, 0, 0.0)),
        queue_depth=8,
        windows_booked=12,
        work=Work(0.01, 0.2, 4096, 1, 2, 3),
    )
    assert told(snapshot) == {
        "daemon cpu_s": 1.5,
        "daemon rss_bytes": 5e7,
        "pipeline queue_depth": 8,
        "pipeline windows_booked": 12,
        "pipeline turn_s": 0.01,
        "pipeline longest_turn_s": 0.2,
        "pipeline journal_bytes": 4096,
        "pipeline late_events": 1,
        "pipeline duplicate_events": 2,
        "pipeline dropped_events": 3,
        "sensor/nvml running": 1,
        "sensor/nvml reads": 9,
        "sensor/nvml failures": 2,
        "sensor/nvml last_duration_s": 0.1,
        "sensor/nvml longest_duration_s": 0.4,
        "sensor/nvml skipped": 3,
        "sensor/nvml throttles": 1,
        "sensor/nvml period_s": 0.1,
        "sensor/rapl running": 0,
        "device/gpu0 gaps": 4,
        "device/gpu0 resets": 5,
        "device/gpu0 counter_ratio": 0.98,
        "engine/bad dropped_events": 6,
    }


def test_what_is_unknown_is_left_out() -> None:
    health = DeviceHealth(GPU, None, Quality.MEASURED, 0, 0)
    found = told(Snapshot(0, (health,)), rss_bytes=0)
    assert "device/gpu0 counter_ratio" not in found
    assert "daemon rss_bytes" not in found


def test_this_process_costs_something() -> None:
    cost = own_cost()
    assert cost.cpu_s > 0
    assert 1_000_000 < cost.rss_bytes < 10_000_000_000


def test_what_did_not_change_is_said_again_after_an_hour() -> None:
    notes = Notes()

    def news(t_s: int, cpu_s: float) -> list[str]:
        metrics = self_metrics(t_s * NS_PER_S, Snapshot(0), OwnCost(cpu_s, 5))
        return [metric.name for metric in notes.news(metrics)]

    everything = news(0, 1.0)
    assert {"cpu_s", "rss_bytes", "queue_depth"} <= set(everything)
    assert news(60, 1.5) == ["cpu_s"]
    assert news(120, 1.5) == []
    assert news(3600, 1.5) == [name for name in everything if name != "cpu_s"]


def test_a_metric_is_a_plain_float() -> None:
    metrics = self_metrics(0, Snapshot(0), OwnCost(1.0, 1))
    assert metrics[0] == SelfMetric(0, "daemon", "cpu_s", 1.0)
    assert {type(metric.value) for metric in metrics} == {float}
