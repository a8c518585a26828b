"""Making the folder of a run: shared by ``run`` and ``screen``."""

from __future__ import annotations

import time
from pathlib import Path

from gpucheck.model.errors import UsageError


def new_folder(out: Path | None) -> Path:
    """Makes the run folder."""
    folder = out or Path("runs") / time.strftime("%m%d-%H%M%S")
    try:
        while not _made(folder, new=out is None):
            folder = folder.with_name(folder.name + "a")
        (folder / "records").mkdir()  # of two runs that were given one folder, one gets no further
    except FileExistsError:
        raise UsageError(f"run folder {folder} was taken by another run just now; give another with --out") from None
    except OSError as error:
        raise UsageError(f"run folder {folder} cannot be made: {error.strerror}; give another with --out") from None
    return folder.resolve()


def _made(folder: Path, *, new: bool) -> bool:
    """Makes a folder; says whether it is ours: one that was there already is not where it must be new."""
    try:
        folder.mkdir(parents=True, exist_ok=not new)
    except FileExistsError:
        if not new:
            raise
        return False
    return True
