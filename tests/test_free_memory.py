"""How much memory is free, where control groups say so too."""

from __future__ import annotations

import pytest
from vis4mer.decode.bench import memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The root of control groups, and this process in `job/step` below it."""
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n0::/job/step\n")
    (tmp_path / "groups" / "job" / "step").mkdir(parents=True)
    return tmp_path / "groups"


def limit(group, most, used, files):
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    active, inactive = files
    about = f"anon 7\nactive_file {active}\ninactive_file {inactive}\nshmem 9\n"
    (group / "memory.stat").write_text(about)


def test_the_narrowest_group_counts_and_files_in_memory_are_free(groups):
    limit(groups / "job", 1000, 900, (150, 250))
    assert memory.free_bytes() == 1000 - (900 - 400)
    limit(groups / "job" / "step", 600, 580, (0, 30))
    assert memory.free_bytes() == 600 - (580 - 30)
    limit(groups / "job" / "step", "max", 580, (0, 30))
    assert memory.free_bytes() == 500


def test_without_limits_it_is_what_the_machine_says(groups):
    found = memory.free_bytes()
    assert found is None or found > 1000
    limit(groups, 5, 9, (0, 0))
    assert memory.free_bytes() == 0
