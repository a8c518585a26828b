"""Makes .cache/no-torch: an environment with the packages of .venv except torch, triton and numpy.

Tests that run there need none of them, which is how `make quick` finds its tests. Run it with the Python of .venv.
"""

import sys
import venv
from collections.abc import Iterable
from pathlib import Path

HIDDEN = ("torch", "triton", "numpy")
REPOSITORY = Path(__file__).resolve().parent.parent


def wanted(entry: Path) -> bool:
    """Whether it is a package, or the metadata of one, that is not hidden; .pth files bring other environments in."""
    name = entry.name.partition("-")[0].partition(".")[0]
    return name not in (*HIDDEN, "__pycache__") and entry.suffix != ".pth"


def binary(command: Path) -> bool:
    """Whether it is a program; a script would start the Python that it was installed for."""
    return not command.name.startswith("python") and command.read_bytes()[:4] == b"\x7fELF"


def link(entries: Iterable[Path], folder: Path) -> None:
    """Links what a folder does not have yet."""
    for entry in entries:
        if not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)


def main() -> None:
    environment = REPOSITORY / ".cache" / "no-torch"
    venv.create(environment, symlinks=True, clear=True)
    (site,) = environment.glob("lib/python3.*/site-packages")
    for folder in (Path(path) for path in sys.path if path.endswith("-packages")):
        link(filter(wanted, folder.iterdir()), site)
        link(filter(binary, (folder.parents[2] / "bin").glob("*")), environment / "bin")
    (site / "gpucheck.pth").write_text(f"{REPOSITORY}\n")


if __name__ == "__main__":
    main()
