"""Release wheels, which install without a compiler, in dist/: `make wheels` runs this.

    python3 tools/wheels/build_wheels.py [--without-zig] [x86_64] [aarch64]

An sdist is made and the wheels are built from it. x86_64: one for Python 3.11 and newer (stable
ABI), one for 3.10 where that is found; for glibc 2.28 and newer. Kernels are compiled by GCC 12 or
newer (CXX_KERNELS, default: g++), the rest by zig from PyPI; without it, as where it cannot be had,
all is compiled by c++, and the wheels then ask for a glibc as new as this machine's. aarch64: by
zig alone, stable ABI alone. Each wheel is audited: its platform by auditwheel, its use of the
stable ABI by abi3audit, its size, and what its kernels import. ccache is used where it is found.

Needs nothing but a Python with venv, and GCC; tools come from PyPI into build/wheels.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pythons import find_pythons

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
HERE = Path(__file__).resolve().parent

ZIG = "ziglang==0.17.1"
GLIBC = "2.28"  # NumPy's own wheels ask for 2.27 or 2.28
STABLE_ABI = (3, 11)  # wheel.py-api in pyproject.toml
MOST_BYTES = 10_000_000
# All that kernels may need of anybody: then it does not matter which compiler's library is linked.
# bf16_is_fast keeps what it measured in a static variable.
KERNEL_IMPORTS = {"memcpy", "memset", "memmove", "__cxa_guard_acquire", "__cxa_guard_release"}


def say(text: str) -> None:
    print(f"wheels: {text}", flush=True)


def run(*command: str | Path, **options: object) -> None:
    """The command's output is shown if it fails, else kept in build/wheels/log."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    with (WORK / "log").open("a") as log:
        log.write(f"$ {' '.join(words)}\n{done.stdout}\n")
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\nwheels: {words[0]} failed: {' '.join(words)}")


def output(*command: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout


def environment(python: Path, version: tuple[int, int]) -> Path:
    """The folder bin of an environment that can build; kept for the next time."""
    folder = WORK / f"python{version[0]}.{version[1]}"
    requirements = HERE / "requirements.txt"
    made = folder / "made"
    wanted = requirements.read_text() + (ROOT / "pyproject.toml").read_text()
    if not made.is_file() or made.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        run(python, "-m", "venv", folder)
        pip = folder / "bin" / "pip"
        run(pip, "install", "-q", "scikit-build-core", "-r", requirements)
        needed = output(folder / "bin" / "python", "-c", BUILD_REQUIREMENTS, ROOT)
        run(pip, "install", "-q", *needed.splitlines())
        made.write_text(wanted)
    return folder / "bin"


# Run by the environment's Python: scikit-build-core brings a reader of TOML where there is none.
BUILD_REQUIREMENTS = """
import sys
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
with open(sys.argv[1] + "/pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\\n")
"""


def find_zig(bin_folder: Path) -> Path | None:
    """zig from PyPI, a program in one folder; None where it cannot be had."""
    pip = [str(bin_folder / "pip"), "install", "-q", ZIG]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        say(f"no zig: {done.stderr.strip().splitlines()[-1]}")
        return None
    code = "import ziglang; print(ziglang.__path__[0])"
    return Path(output(bin_folder / "python", "-c", code).strip()) / "zig"


def kernels_compiler() -> str:
    """GCC 12 or newer, which knows AMX."""
    compiler = os.environ.get("CXX_KERNELS", "g++")
    found = output(compiler, "-dumpfullversion").strip() if shutil.which(compiler) else "none"
    if not re.match(r"(1[2-9]|[2-9]\d)\.", found):
        raise SystemExit(f"wheels: kernels: expected GCC 12 or newer as {compiler}, found {found}")
    return compiler


def toolchain(machine: str, zig: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """CMake's definitions and variables of the environment."""
    define = {"CMAKE_MODULE_LINKER_FLAGS": "-s"}
    variables: dict[str, str] = {}
    check = "compiler"
    if zig is not None:
        tools = WORK / "tools"
        tools.mkdir(exist_ok=True)
        for name in ("ar", "ranlib"):
            script = tools / name
            script.write_text(f'#!/bin/sh\nexec "{zig}" {name} "$@"\n')
            script.chmod(0o755)
            define[f"CMAKE_{name.upper()}"] = str(script)
        define["CMAKE_CXX_COMPILER"] = str(HERE / "compiler.sh")
        variables["GPTOSS_ZIG"] = str(zig)
        variables["GPTOSS_ZIG_TARGET"] = f"{machine}-linux-gnu.{GLIBC}"
        check = f"{ZIG} {variables['GPTOSS_ZIG_TARGET']}"
        if machine == "x86_64":
            compiler = kernels_compiler()
            variables["GPTOSS_KERNELS_CXX"] = compiler
            # GCC's small helpers before zig's library of them, which would also bring memcpy, expf
            # and others of its own: a tenth of a step of the bundled model (check_imports).
            helpers = output(compiler, "-print-libgcc-file-name").strip()
            define["CMAKE_CXX_STANDARD_LIBRARIES"] = helpers
            check += f" {output(compiler, '--version').splitlines()[0]}"
        # The script does not change when a compiler behind it does.
        variables["CCACHE_COMPILERCHECK"] = f"string:{check} {(HERE / 'compiler.sh').read_text()}"
    if machine != platform.machine():
        define["CMAKE_SYSTEM_NAME"] = "Linux"
        define["CMAKE_SYSTEM_PROCESSOR"] = machine
        variables["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"  # sysconfig's, for the wheel's tag
    if shutil.which("ccache"):
        define["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
        variables["CCACHE_BASEDIR"] = str(WORK)
        variables["CCACHE_NOHASHDIR"] = "1"
    return define, variables


def check_kernels(build: Path) -> None:
    """They may need only what every C library has."""
    objects = sorted(build.glob("core/CMakeFiles/gptoss_core.dir/cpu/kernels/*.o"))
    objects = [path for path in objects if not path.name.startswith("select.")]
    if len(objects) < 2:
        raise SystemExit(f"wheels: expected kernels of several instruction sets, found {objects}")
    for path in objects:
        names = {line.split()[-1] for line in output("nm", "-u", path).splitlines()}
        wrong = {name for name in names if "gptoss" not in name} - KERNEL_IMPORTS
        if wrong - {"_GLOBAL_OFFSET_TABLE_"}:
            raise SystemExit(f"wheels: {path.name}: kernels may import no {sorted(wrong)}")


def check_imports(module: Path) -> None:
    """The C library's own functions must be used, which know the CPU."""
    names = {
        line.split()[-1].split("@")[0] for line in output("nm", "-D", "-u", module).splitlines()
    }
    missing = {"memcpy", "memset", "expf"} - names
    if missing:
        raise SystemExit(f"wheels: {module.name}: expected to import {sorted(missing)} from glibc")


def tag_platform(tools: Path, wheel: Path, machine: str) -> Path:
    """The wheel, for GLIBC and newer.

    auditwheel may have found that it needs no symbol so new, but nobody has run it with an older
    one; and of another machine auditwheel takes no platform by name.
    """
    floor = int(GLIBC.split(".")[1])
    found = re.search(rf"manylinux_2_(\d+)_{machine}", wheel.name)
    if found is None or int(found[1]) > floor:
        raise SystemExit(f"wheels: expected glibc 2.{floor} or older to do, found {wheel.name}")
    tag = f"manylinux_2_{floor}_{machine}"
    run(tools / "wheel", "tags", "--platform-tag", tag, "--remove", wheel)
    (tagged,) = wheel.parent.glob(f"*{tag}.whl")
    return tagged


def build_wheel(
    python: Path, version: tuple[int, int], source: Path, machine: str, zig: Path | None
) -> Path:
    """One wheel in dist/, audited."""
    tools = environment(python, version)
    define, variables = toolchain(machine, zig)
    # One folder for all Pythons: the core is compiled once.
    folder = WORK / (machine if zig is not None else f"{machine}-without-zig")
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    settings = {"build-dir": str(folder), "install.strip": "false"}
    settings.update({f"cmake.define.{name}": value for name, value in define.items()})
    options = [f"-C{name}={value}" for name, value in settings.items()]
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(raw), *options]
    path = f"{tools}:{os.environ['PATH']}"  # CMake and Ninja are there
    run(tools / "python", *command, source, env={**os.environ, **variables, "PATH": path})
    if zig is not None and machine == "x86_64":
        check_kernels(folder)
        for module in (folder / "bindings").glob(
            f"_core.*{'abi3' if version >= STABLE_ABI else '310'}*so"
        ):
            check_imports(module)
    (wheel,) = raw.glob("*.whl")
    repair = ["repair", "--plat", "auto", "--only-plat", "-w", str(raw / "repaired"), str(wheel)]
    run(tools / "auditwheel", *repair, env={**os.environ, "PATH": path})
    (repaired,) = (raw / "repaired").glob("*.whl")
    if zig is not None:
        repaired = tag_platform(tools, repaired, machine)
    if "-abi3-" in repaired.name:
        run(tools / "abi3audit", "--strict", "--assume-minimum-abi3", "3.11", repaired)
    size = repaired.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"wheels: {repaired.name}: expected at most {MOST_BYTES} bytes, is {size}")
    say(f"{repaired.name}: {size / 1e6:.2f} MB")
    return Path(shutil.move(str(repaired), str(DIST / repaired.name)))


def unpacked_sdist(tools: Path) -> Path:
    """dist/*.tar.gz, and what is in it."""
    command = ["-m", "build", "--sdist", "--no-isolation", "--outdir", str(DIST)]
    run(tools / "python", *command, ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    say(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB")
    source = WORK / "source"
    shutil.rmtree(source, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(source)
    (folder,) = source.iterdir()
    touch_all(folder)
    return folder.rename(source / "gptoss")


def touch_all(folder: Path) -> None:
    """Files of an sdist are of one old date, by which Ninja would keep objects of other sources.

    What ccache has seen it gives back, whatever the date.
    """
    for path in folder.rglob("*"):
        path.touch()


def main(arguments: list[str]) -> int:
    machines = [argument for argument in arguments if argument != "--without-zig"]
    wrong = set(machines) - {"x86_64", "aarch64"}
    if wrong:
        raise SystemExit(f"wheels: expected x86_64 or aarch64, found {', '.join(sorted(wrong))}")
    pythons = find_pythons()
    stable = min((version for version in pythons if version >= STABLE_ABI), default=None)
    if stable is None:
        raise SystemExit("wheels: expected a Python 3.11 or newer on this machine, found none")
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "log").unlink(missing_ok=True)
    tools = environment(pythons[stable], stable)
    zig = find_zig(tools) if machines == arguments else None
    source = unpacked_sdist(tools)
    for machine in machines or ["x86_64", "aarch64"]:
        if zig is None:
            if machine != platform.machine():
                raise SystemExit(f"wheels: {machine}: expected zig, which compiles for it")
            say(f"WITHOUT ZIG: by {os.environ.get('CXX', 'c++')} alone, for this machine's glibc")
        build_wheel(pythons[stable], stable, source, machine, zig)
        if machine == "x86_64" and (3, 10) in pythons:
            build_wheel(pythons[3, 10], (3, 10), source, machine, zig)
        elif machine == "x86_64":
            say("NO PYTHON 3.10 HERE: its wheel is not built")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
