from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattledger_collectors.workloads.places import (
    KEEPERS,
    Holder,
    Manager,
    Place,
    above,
    cgroup_paths,
    holder_of,
    place_among,
    place_of,
)

HEX = "0123456789abcdef" * 4
UID = "6a2b9c1e-0d3f-4c55-9d0e-aaaabbbbcccc"
UID_ = UID.replace("-", "_")
SCOPE = "/system.slice/slurmstepd.scope"
BURST = "/kubepods.slice/kubepods-burstable.slice"
POD_SLICE = f"{BURST}/kubepods-burstable-pod{UID_}.slice"
GUARANTEED = f"/kubepods.slice/kubepods-pod{UID_}.slice"
KIND = f"/docker/{'f' * 64}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
KIND_POD = f"{KIND}/kubelet-kubepods-besteffort-pod{UID_}.slice"
USER = "/user.slice/user-1000.slice"
JOINED = f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{HEX}"


def slurm(folder: str, step: str | None = None) -> Place:
    return Place(Manager.SLURM, job="7", step=step, folder=folder)


def pod(folder: str, container: str | None = None) -> Place:
    return Place(Manager.KUBERNETES, pod=UID, container=container, folder=folder)


def container(folder: str) -> Place:
    return Place(Manager.CONTAINER, container=HEX, folder=folder)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (f"{SCOPE}/job_7/step_0/user/task_0", slurm(f"{SCOPE}/job_7", "0")),
        (f"{SCOPE}/job_7/step_batch", slurm(f"{SCOPE}/job_7", "batch")),
        (
            "/system.slice/n1_slurmstepd.scope/job_7",
            slurm("/system.slice/n1_slurmstepd.scope/job_7"),
        ),
        ("/slurm/uid_1000/job_7/step_extern", slurm("/slurm/uid_1000/job_7", "extern")),
        ("/slurm_n1/uid_0/job_7/step_1/task_3", slurm("/slurm_n1/uid_0/job_7", "1")),
        ("/system.slice/slurm/uid_1/job_7", slurm("/system.slice/slurm/uid_1/job_7")),
        # Whoever may make groups inside a job stays in that job.
        (f"{SCOPE}/job_7/step_0/job_9/step_9", slurm(f"{SCOPE}/job_7", "0")),
        (f"{POD_SLICE}/cri-containerd-{HEX}.scope", pod(POD_SLICE, HEX)),
        (f"{POD_SLICE}/crio-{HEX}.scope/container", pod(POD_SLICE, HEX)),
        (f"{POD_SLICE}/crio-{HEX}", pod(POD_SLICE, HEX)),
        (f"{POD_SLICE}/docker-{HEX}.scope", pod(POD_SLICE, HEX)),
        (GUARANTEED, pod(GUARANTEED)),
        (f"/kubepods/burstable/pod{UID}/{HEX}", pod(f"/kubepods/burstable/pod{UID}", HEX)),
        (f"/kubepods/pod{UID}/{HEX}", pod(f"/kubepods/pod{UID}", HEX)),
        (f"{KIND_POD}/cri-containerd-{HEX}.scope", pod(KIND_POD, HEX)),
        (f"/system.slice/docker-{HEX}.scope", container(f"/system.slice/docker-{HEX}.scope")),
        (f"/docker/{HEX}", container(f"/docker/{HEX}")),
        (f"/docker/{HEX}/init.scope", container(f"/docker/{HEX}")),
        (
            f"/machine.slice/libpod-{HEX}.scope/container",
            container(f"/machine.slice/libpod-{HEX}.scope"),
        ),
        (f"/libpod_parent/libpod-{HEX}", container(f"/libpod_parent/libpod-{HEX}")),
        (f"/ecs/task/{HEX}", container(f"/ecs/task/{HEX}")),
        (
            f"{USER}/session-3.scope",
            Place(Manager.SESSION, user="1000", folder=f"{USER}/session-3.scope"),
        ),
        (
            f"{USER}/user@1000.service/init.scope",
            Place(Manager.SESSION, user="1000", folder=f"{USER}/user@1000.service"),
        ),
        ("/kubepods/burstable/pod", Place()),
        (f"/pod{UID}", Place()),
        ("/job_7/step_0", Place()),
        (f"/docker/{HEX[:-1]}", Place()),
        (f"/docker/{HEX.upper()}", Place()),
        ("/", Place()),
        ("", Place()),
        ("/init.scope", Place()),
        ("/kubepods.slice", Place()),
    ],
)
def test_what_a_path_says(path: str, place: Place) -> None:
    found = place_of(path)
    assert found == Place(
        place.manager,
        place.job,
        place.step,
        place.pod,
        place.container,
        found.unit,
        place.user,
        place.folder,
    )


@pytest.mark.parametrize(
    ("path", "unit", "folder"),
    [
        ("/system.slice/vllm.service", "vllm.service", "/system.slice/vllm.service"),
        ("/system.slice/vllm.service/inner", "vllm.service", "/system.slice/vllm.service"),
        ("/system.slice/a.service (deleted)", "a.service", "/system.slice/a.service"),
        (
            f"{USER}/user@1000.service/app.slice/app-train-1.scope",
            "app-train-1.scope",
            f"{USER}/user@1000.service/app.slice/app-train-1.scope",
        ),
        (f"{SCOPE}/system", "slurmstepd.scope", SCOPE),
        ("/machine.slice/libpod-conmon-" + HEX + ".scope", f"libpod-conmon-{HEX}.scope", None),
    ],
)
def test_a_unit(path: str, unit: str, folder: str | None) -> None:
    place = place_of(path)
    assert (place.manager, place.unit) == (Manager.SYSTEMD, unit)
    assert place.folder == (path if folder is None else folder)


def test_the_monitor_of_a_container_is_not_one() -> None:
    place = place_of(f"{POD_SLICE}/crio-conmon-{HEX}.scope")
    assert (place.manager, place.container) == (Manager.KUBERNETES, None)


def test_a_slice_prefix_and_id_in_one_folder() -> None:
    place = place_of(JOINED)
    assert (place.pod, place.container, place.folder) == (UID, HEX, JOINED)


def test_what_lies_outside_a_cgroup_namespace_is_named_and_has_no_folder() -> None:
    place = place_of(f"/../../{POD_SLICE}/cri-containerd-{HEX}.scope")
    assert (place.manager, place.pod, place.container, place.folder) == (
        Manager.KUBERNETES,
        UID,
        HEX,
        "",
    )


def test_a_path_of_four_kilobytes_is_cut_and_never_opened() -> None:
    long = "/system.slice/" + "x" * 5000 + ".service"
    assert place_of(long) == Place()
    deep = f"{SCOPE}/job_7/" + "y" * 5000
    assert (place_of(deep).job, place_of(deep).folder) == ("7", "")


def test_bytes_that_are_not_text_are_tamed_in_names_and_kept_in_folders() -> None:
    paths = cgroup_paths(b'0::/system.slice/a\xff\x1b".service\n')
    place = place_of(paths[""])
    assert place.unit == 'a??".service'
    assert os.fsencode(place.folder) == b'/system.slice/a\xff\x1b".service'


@pytest.mark.parametrize(
    ("cgroup", "manager", "unit"),
    [
        (b"0::/system.slice/a.service\n", Manager.SYSTEMD, "a.service"),
        (
            b"3:cpu:/x.service\n1:name=systemd:/system.slice/db.service\n0::/\n",
            Manager.SYSTEMD,
            "db.service",
        ),
        (b"2:cpu,cpuacct:/system.slice/not-this.service\n", Manager.NOBODY, None),
        # A hybrid host: SLURM keeps its jobs in version 1, the unit is slurmd's.
        (
            b"5:memory:/slurm/uid_1/job_7/step_0\n1:name=systemd:/system.slice/slurmd.service\n"
            b"0::/system.slice/slurmd.service\n",
            Manager.SLURM,
            None,
        ),
        (b"0::relative.service\nnonsense\n::\n:\n", Manager.NOBODY, None),
    ],
)
def test_the_hierarchy_that_knows_most_speaks(
    cgroup: bytes, manager: Manager, unit: str | None
) -> None:
    place = place_among(cgroup_paths(cgroup))
    assert (place.manager, place.unit) == (manager, unit)


@pytest.mark.parametrize(
    ("path", "holder"),
    [
        ("", Holder.MIXED),
        ("/system.slice", Holder.MIXED),
        (SCOPE, Holder.PURE),
        ("/slurm", Holder.PURE),
        ("/slurm/uid_5", Holder.PURE),
        (BURST, Holder.PURE),
        ("/kubepods/besteffort", Holder.PURE),
        (KIND, Holder.PURE),
        ("/docker", Holder.PURE),
        (POD_SLICE, None),
        (f"{SCOPE}/job_7", None),
        ("/system.slice/docker.service", None),
        ("/uid_5", None),
        ("/user.slice", None),
    ],
)
def test_where_groups_that_are_somebodys_lie(path: str, holder: Holder | None) -> None:
    assert holder_of(path) is holder


def test_the_folders_above() -> None:
    assert list(above("/a/b/c")) == ["/a/b", "/a"]
    assert list(above("")) == []


PARTS = st.sampled_from(
    ["slurm", "uid_1", "job_7", "step_0", "kubepods", f"pod{UID}", HEX, "a.service", "..", "x", ""]
) | st.text(max_size=12)


@given(st.lists(PARTS, max_size=8))
def test_a_place_lies_around_its_path_and_says_whose_it_is(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    place = place_of(path)
    if place.folder:
        whole = [part for part in path.removesuffix(" (deleted)").split("/") if part]
        depth = place.folder.count("/")
        assert place.folder.split("/")[1:] == whole[:depth]
        # What belongs together is the same place, but for what lies deeper.
        assert place_of(place.folder).manager is place.manager
        assert place_of(place.folder).folder == place.folder
    if place.manager in KEEPERS:
        assert place.job or place.pod or place.container
    assert place.unit is None or (place.unit.isprintable() and len(place.unit) <= 200)
