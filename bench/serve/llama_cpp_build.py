"""Build llama-server and llama-batched-bench from the sources that our llama-cpp-python carries.

    python -m bench.serve.llama_cpp_build FOLDER [JOBS]

pip fetches the sdist of the installed llama-cpp-python, cmake builds its vendored llama.cpp with the RPC backend, as
our wheel is built, without the web page that llama-server would download. The two paths are printed at the end.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from ktllama.runtime.library import installed_version

TARGETS = ("llama-server", "llama-batched-bench")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_RPC=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def _sources(folder: Path) -> Path:
    version = installed_version()
    unpacked = folder / f"llama_cpp_python-{version}"
    if not unpacked.is_dir():
        download = [
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "--no-build-isolation",
            "-d",
            str(folder),
        ]
        _run([sys.executable, "-m", "pip", *download, f"llama-cpp-python=={version}"])
        with tarfile.open(folder / f"llama_cpp_python-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return unpacked / "vendor" / "llama.cpp"


def _run(words: list[str]) -> None:
    print("$", *words, flush=True)
    subprocess.run(words, check=True)


def main(folder: Path, n_jobs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    build = folder / "build"
    _run(["cmake", "-S", str(_sources(folder)), "-B", str(build), *_OPTIONS])
    _run(["cmake", "--build", str(build), "--target", *TARGETS, f"-j{n_jobs}"])
    for target in TARGETS:
        print(build / "bin" / target)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) == 3 else 1)
