"""How much memory the cache takes by default."""

import pytest

from gptoss.engine.memory import available_memory, default_kv_bytes, device_kv_bytes

GIB = 1 << 30


def pages_for(tokens):
    return tokens // 8


@pytest.mark.parametrize(
    ("context", "available", "tokens"),
    [
        (1024, 1 << 50, 16 * 1024),  # plenty: 16 full contexts
        (131072, 1 << 50, 16 * 131072),
        (131072, 4 * 65536 * 100 // 8, 65536),  # a quarter of what there is
        (131072, 0, 4096),  # nothing: one sequence of 4096 all the same
        (1024, 0, 1024),  # or of the whole context, if that is shorter
    ],
)
def test_default(context, available, tokens):
    assert default_kv_bytes(pages_for, 100, context, available) == pages_for(tokens) * 100


def test_default_on_a_device():
    assert device_kv_bytes(pages_for, 100, 1024, 1 << 50) == 64 * pages_for(1024) * 100
    assert device_kv_bytes(pages_for, 100, 131072, 1_000_000) == 850_000
    assert device_kv_bytes(pages_for, 100, 131072, 0) == 0


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_available_here():
    assert 1 << 20 < available_memory() < 1 << 60


def test_the_smaller_of_machine_and_control_group(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal: 99 kB\nMemAvailable:    8388608 kB\n")
    assert available_memory(tmp_path) == 8 * GIB
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "5\n")
    assert available_memory(tmp_path) == 8 * GIB
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{3 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", f"{GIB}\n")
    assert available_memory(tmp_path) == 2 * GIB


def test_control_groups_version_1(tmp_path):
    write(tmp_path, "proc/meminfo", "MemAvailable: 8388608 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{2 * GIB}\n")
    assert available_memory(tmp_path) == 0


def test_without_proc(tmp_path):
    assert available_memory(tmp_path) > 0


def test_garbage_in_proc(tmp_path):
    write(tmp_path, "proc/meminfo", "MemAvailable:\n")
    assert available_memory(tmp_path) > 0
