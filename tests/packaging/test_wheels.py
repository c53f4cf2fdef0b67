"""What release wheels rest on: the stable ABI, the two compilers, and the tools that check them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from gptoss.cli import main
from gptoss.native import _core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools" / "wheels"


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def load(name: str) -> ModuleType:
    """A file of tools/wheels, which is no package."""
    spec = spec_from_file_location(f"wheels_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stable_abi_is_asked_for_from_one_version_on(project: dict) -> None:
    build_wheels = load("build_wheels")
    major, minor = build_wheels.STABLE_ABI
    assert project["tool"]["scikit-build"]["wheel"]["py-api"] == f"cp{major}{minor}"
    # A wheel of its own for every version before it, and there is one: 3.10.
    assert project["project"]["requires-python"] == f">=3.{minor - 1}"


def test_the_installed_core_uses_it() -> None:
    without_gil = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    stable = sys.version_info >= load("build_wheels").STABLE_ABI and not without_gil
    assert (".abi3." in Path(_core.__file__).name) == stable


def test_cmake_that_knows_the_stable_abi_is_asked_for_twice(project: dict) -> None:
    requires = project["build-system"]["requires"]
    (cmake,) = [line for line in requires if line.startswith("cmake")]
    assert cmake.removeprefix("cmake") == project["tool"]["scikit-build"]["cmake"]["version"]


@pytest.mark.parametrize(
    ("source", "compiler"),
    [
        ("core/cpu/kernels/avx512_bf16.cpp", "gcc"),
        ("core/cpu/kernels/generic.cpp", "gcc"),
        ("core/cpu/kernels/select.cpp", "zig"),  # of strings and vectors: not gcc's library
        ("core/cpu/isa.cpp", "zig"),
        ("bindings/_core.cpp", "zig"),
    ],
)
@pytest.mark.parametrize("kernels_apart", [True, False])
def test_kernels_are_compiled_by_gcc_and_the_rest_by_zig(
    tmp_path: Path, source: str, compiler: str, kernels_apart: bool
) -> None:
    for name in ("gcc", "zig"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    variables = {"GPTOSS_ZIG": str(tmp_path / "zig"), "GPTOSS_ZIG_TARGET": "x86_64-linux-gnu.2.28"}
    if kernels_apart:
        variables["GPTOSS_KERNELS_CXX"] = str(tmp_path / "gcc")
    # As CMake calls it: absolute paths, options before and after.
    command = [TOOLS / "compiler.sh", "-O3", "-o", "a.o", "-c", f"/somewhere/{source}"]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    words = done.stdout.split()
    assert words[0] == (compiler if kernels_apart else "zig")
    assert f"/somewhere/{source}" in words
    assert ("x86_64-linux-gnu.2.28" in words) == (words[0] == "zig")


FLAGS = "fma avx f16c avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2", "generic"),
        ("sse2 avx2 fma", "generic"),  # no f16c
        ("sse2 avx2 fma f16c avx512f", "avx2"),
        (FLAGS.replace(" avx512_vnni", ""), "avx512"),
        (FLAGS.replace(" avx512_bf16", ""), "avx512_vnni"),
        (FLAGS, "avx512_bf16"),
        (FLAGS + " amx_tile", "avx512_bf16"),
    ],
)
def test_the_set_that_flags_imply(flags: str, expected: str) -> None:
    cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n"
    assert load("try_wheels").expected_set(cpuinfo) == expected


def test_this_machine_chooses_that_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTOSS_CPU_ISA", raising=False)
    expected = load("try_wheels").expected_set(Path("/proc/cpuinfo").read_text())
    assert _core.cpu_features()["isa"].split()[0] == expected


def test_the_bundled_model_writes_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    story = load("story")
    assert main(story.COMMAND) == 0
    written = capsys.readouterr().out
    story.check_story(written, "this installation")
    with pytest.raises(SystemExit, match="expected to read"):
        story.check_story(written[:-10], "another")


def test_nothing_but_python_is_found_where_wheels_are_tried(tmp_path: Path) -> None:
    try_wheels = load("try_wheels")
    variables = try_wheels.bare_environment(tmp_path, Path(sys.executable))
    assert [path.name for path in Path(variables["PATH"]).iterdir()] == ["python3"]
    assert "LD_LIBRARY_PATH" not in variables and variables["CC"] == "/bin/false"


def test_this_python_is_found() -> None:
    found = load("pythons").find_pythons()
    assert sys.version_info[:2] in found
    assert min(found) >= (3, 10)


def test_sources_are_newer_than_what_was_built_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sdist's files are of one old date, and the build folder is kept."""
    build_wheels = load("build_wheels")
    folder = tmp_path / "gptoss-0.1.0"
    folder.mkdir()
    (folder / "a.cpp").write_text("")
    os.utime(folder / "a.cpp", (0, 0))
    for name in ("dist", "work"):
        (tmp_path / name).mkdir()

    def make_sdist(*_: object, **__: object) -> None:
        with tarfile.open(tmp_path / "dist" / "gptoss-0.1.0.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)

    monkeypatch.setattr(build_wheels, "run", make_sdist)
    monkeypatch.setattr(build_wheels, "DIST", tmp_path / "dist")
    monkeypatch.setattr(build_wheels, "WORK", tmp_path / "work")
    (tmp_path / "a.o").write_text("")
    source = build_wheels.unpacked_sdist(tmp_path)
    assert (source / "a.cpp").stat().st_mtime >= (tmp_path / "a.o").stat().st_mtime


@pytest.mark.parametrize("platform", ["manylinux_2_35_x86_64", "linux_x86_64"])
def test_a_wheel_that_needs_a_newer_glibc_is_refused(tmp_path: Path, platform: str) -> None:
    wheel = tmp_path / f"gptoss-0.1.0-cp311-abi3-{platform}.whl"
    with pytest.raises(SystemExit, match=r"expected glibc 2\.28 or older to do"):
        load("build_wheels").tag_platform(tmp_path, wheel, "x86_64")
