from __future__ import annotations

import pytest

from wattledger.errors import InputError
from wattledger.hardware.catalogue import find_gpu, list_gpus, require_gpu
from wattledger.hardware.factors import (
    FactorClass,
    embodied_factor,
    embodied_rows,
    parse_override,
    parse_overrides,
)


@pytest.mark.parametrize(
    ("name", "known", "tdp_w"),
    [
        ("NVIDIA A100-PCIe-40GB", "NVIDIA A100-PCIE-40GB", 250.0),
        ("nvidia a100-sxm4-80gb", "NVIDIA A100-SXM4-80GB", 400.0),
        ("A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", 400.0),
        ("NVIDIA A100-PCIE-80GB", "NVIDIA A100 80GB PCIe", 300.0),
        ("NVIDIA Tesla T4", "Tesla T4", 70.0),
        ("NVIDIA GH200", "NVIDIA GH200 480GB", 700.0),
    ],
)
def test_a_device_is_found_however_it_is_spelled(name: str, known: str, tdp_w: float) -> None:
    spec = find_gpu(name)
    assert spec is not None
    assert (spec.name, spec.tdp_w) == (known, tdp_w)


def test_the_catalogue_is_whole_and_unambiguous() -> None:
    assert len(list_gpus()) == 31
    assert all(require_gpu(spec.name) is spec for spec in list_gpus())
    # 480 GB is what the CPU beside it holds.
    assert require_gpu("NVIDIA GH200 480GB").memory_gb == 96
    assert require_gpu("NVIDIA H100 NVL").fp16_dense_tflops is None


def test_an_unknown_device_names_the_nearest() -> None:
    assert find_gpu("NVIDIA H100 SXM") is None
    with pytest.raises(InputError, match=r"did you mean .*H100"):
        require_gpu("NVIDIA H100 SXM")
    with pytest.raises(InputError, match="hardware list"):
        require_gpu("zzzz")
    assert find_gpu("") is None


@pytest.mark.parametrize(
    ("name", "range_kg", "method", "confidence"),
    [
        ("NVIDIA H100 80GB HBM3", (164.0, 164.0, 273.0), "manufacturer PCF", "H"),
        ("NVIDIA B200", (284.25, 284.25, 284.25), "manufacturer PCF", "H"),
        ("NVIDIA A100-SXM4-40GB", (111.3, 127.6, 127.6), "LCA", "M"),
        ("NVIDIA A100-PCIe-40GB", (120.5, 120.5, 120.5), "Hubblo", "M"),
        ("NVIDIA L4", (57.5, 57.5, 57.5), "Hubblo", "M"),
        ("NVIDIA GH200 480GB", (210.0, 210.0, 210.0), "Hubblo", "M"),
        ("NVIDIA H200", (33.1, 364.0, 364.0), "LCA", "L"),
        ("Tesla T4", (10.3, 10.3, 61.8), "ACT", "L"),
        ("NVIDIA RTX 6000 Ada Generation", (26.6, 26.6, 159.6), "ACT", "L"),
        ("NVIDIA A100-SXM4-80GB", (25.1, 25.1, 150.6), "ACT", "L"),
    ],
)
def test_the_lookup_order(
    name: str, range_kg: tuple[float, float, float], method: str, confidence: str
) -> None:
    factor = embodied_factor(name)
    assert factor is not None
    assert (factor.low_kg, factor.kg, factor.high_kg) == range_kg
    assert factor.method.startswith(method)
    assert factor.confidence == confidence


def test_a_lower_bound_says_so() -> None:
    factor = embodied_factor("Tesla T4")
    assert factor is not None
    assert "lower bound" in factor.range_reason
    assert "6 times" in factor.range_reason


def test_outliers_are_shown_and_never_chosen() -> None:
    rows = embodied_rows("NVIDIA H100 80GB HBM3")
    assert rows[0].factor_class is FactorClass.PCF
    assert rows[-1].factor_class is FactorClass.REFERENCE
    assert rows[-1].kg_co2e == 575.1
    for spec in list_gpus():
        factor = embodied_factor(spec.name)
        references = [
            row.kg_co2e
            for row in embodied_rows(spec.name)
            if row.factor_class is FactorClass.REFERENCE
        ]
        assert factor is None or factor.kg not in references


def test_nothing_is_invented() -> None:
    assert embodied_factor("NVIDIA GB200") is None
    assert embodied_factor("AMD EPYC 9654") is None
    assert embodied_rows("AMD EPYC 9654") == ()


def test_an_override_comes_first() -> None:
    factor = embodied_factor("NVIDIA H100 80GB HBM3", {"nvidia h100-80gb-hbm3": 200.0})
    assert factor is not None
    assert (factor.low_kg, factor.kg, factor.high_kg) == (200.0, 200.0, 200.0)
    assert factor.method == "override"
    cpu = embodied_factor("AMD EPYC 9654", {"AMD EPYC 9654": 30.0})
    assert cpu is not None
    assert cpu.kg == 30.0


def test_overrides_are_read() -> None:
    assert parse_override("NVIDIA H200=364.5") == ("NVIDIA H200", 364.5)
    assert parse_override("a=b=1") == ("a=b", 1.0)
    for text in ("", "NVIDIA H200", "=3", "NVIDIA H200=", "X=-1", "X=nan", "X=inf", "X=3kg"):
        with pytest.raises(InputError, match="--embodied"):
            parse_override(text)


def test_overrides_name_each_device_once() -> None:
    assert parse_overrides(["NVIDIA H200=1", "X=2"]) == {"NVIDIA H200": 1.0, "X": 2.0}
    with pytest.raises(InputError, match="keep one"):
        parse_overrides(["NVIDIA H200=1", "nvidia h200=2"])
