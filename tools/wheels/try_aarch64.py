"""Runs the aarch64 wheel of dist/ under QEMU: `make wheels-aarch64`.

    python3 tools/wheels/try_aarch64.py

On Debian, as root or with qemu-user-static installed. An arm64 Python 3.11 and its libraries are
fetched from the Debian mirror that this machine uses, and unpacked, not installed, in build/wheels;
pip fetches the wheels of the dependencies. The text must be the one of story.py. Exit status 0 with
a line that says so where QEMU cannot be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import story

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "wheels" / "arm64"
QEMU = "qemu-aarch64-static"
# NumPy needs the system's libstdc++; gptoss has a C++ library inside.
PACKAGES = ["python3.11-minimal", "libpython3.11-stdlib", "libstdc++6"]

# apt, for another architecture and beside the machine's own state.
APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
"""


def run(*command: str | Path, **variables: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={**os.environ, **variables}, cwd=WORK, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}{done.stderr}wheels: failed: {' '.join(words)}")
    return done.stdout


def have_qemu() -> bool:
    if shutil.which(QEMU) is None and shutil.which("apt-get") and os.geteuid() == 0:
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "qemu-user-static"]
        subprocess.run(["apt-get", "update", "-q"], capture_output=True)
        subprocess.run(install, capture_output=True)
    return shutil.which(QEMU) is not None


def fetch_python() -> Path:
    """An arm64 root that holds Python 3.11; kept for the next time."""
    root = WORK / "root"
    python = root / "usr" / "bin" / "python3.11"
    if python.is_file():
        return root
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (WORK / folder).mkdir(parents=True, exist_ok=True)
    (WORK / "state" / "status").touch()
    (WORK / "apt.conf").write_text(APT.format(folder=WORK))
    settings = {"APT_CONFIG": str(WORK / "apt.conf")}
    run("apt-get", "update", "-q", **settings)
    run("apt-get", "install", "-q", "-y", "--download-only", *PACKAGES, **settings)
    for package in sorted((WORK / "cache" / "archives").glob("*.deb")):
        run("dpkg", "-x", package, root)
    return root


def install(wheel: Path) -> Path:
    """A folder with the wheel and what it needs, as pip would choose for that machine."""
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", site]
    for platform in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{platform}_aarch64"]
    command += ["--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:"]
    run(*command, "--abi", "cp311", "--abi", "abi3", "--abi", "none", wheel)
    return site


def main() -> int:
    if not have_qemu() or shutil.which("apt-get") is None:
        print(f"wheels: aarch64: NOT TRIED, expected {QEMU} and apt-get on this machine")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    found = list((ROOT / "dist").glob("*-cp311-abi3-*_aarch64.whl"))
    if len(found) != 1:
        raise SystemExit(f"wheels: expected one aarch64 wheel in dist, found {len(found)}")
    root = fetch_python()
    variables = {"PYTHONPATH": str(install(found[0]))}
    python = [QEMU, "-L", root, root / "usr" / "bin" / "python3.11"]
    info = run(*python, "-m", "gptoss", "info", **variables)
    if "generic kernels" not in info or "aarch64" not in info:
        raise SystemExit(f"{info}wheels: aarch64: expected generic kernels on aarch64")
    text = run(*python, "-m", "gptoss", *story.COMMAND, **variables)
    story.check_story(text, "aarch64")
    print(f"{info}wheels: {found[0].name} writes under QEMU:\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
