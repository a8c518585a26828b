"""Counters of the out-of-memory killer, in files as both versions of control groups and the kernel write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.host.oom_killer import OomKills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 7\n"


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "count", "where"),
    [
        (
            {"proc/self/cgroup": "0::/pod/x\n", "sys/fs/cgroup/pod/x/memory.events": EVENTS.format(2)},
            2,
            "this control group",
        ),
        (
            {"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/memory.events": EVENTS.format(4)},
            4,
            "this control group",
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory,hugetlb:/pod\n0::/\n",
                "sys/fs/cgroup/memory/pod/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 9\n",
                "proc/vmstat": "oom_kill 100\n",
            },
            9,
            "this control group",
        ),
        ({"proc/self/cgroup": "0::/\n", "proc/vmstat": "nr_free 1\noom_kill 5\n"}, 5, "this machine"),
        ({"proc/vmstat": "nr_free 1\n"}, 0, ""),
        ({}, 0, ""),
    ],
)
def test_where_the_counter_lies(tmp_path: Path, files: dict[str, str], count: int, where: str) -> None:
    kills = OomKills(lay(tmp_path, files))
    assert (kills.count(), kills.where) == (count, where)


def test_a_counter_that_rises_and_goes_away(tmp_path: Path) -> None:
    kills = OomKills(lay(tmp_path, {"proc/vmstat": "oom_kill 5\n"}))
    (tmp_path / "proc/vmstat").write_text("oom_kill 6\n")
    assert kills.count() == 6
    (tmp_path / "proc/vmstat").unlink()
    assert kills.count() == 0


def test_this_machine_can_be_asked() -> None:
    assert OomKills().count() >= 0
