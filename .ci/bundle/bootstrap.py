"""What runs when Python is given gpucheck.pyz: unpacks it once for this user, then starts the command.

It is unpacked because Triton reads the source of kernels from files and ranks are started by module name. ``app`` holds
gpucheck alone and is all that ranks see; ``vendor`` holds what the command line needs and goes before the packages of
this Python for this process only, so that torch meets the packages it was installed with.

Kept to what old Pythons can parse, so that they can say that they are too old.
"""

import os
import shutil
import stat
import sys
import tempfile
import zipfile

OLDEST = (3, 10)
INCONCLUSIVE = 3  # exit code; see gpucheck.model.errors
DIGEST = "DIGEST"  # member that holds the digest of all others


def main() -> None:
    """Runs ``gpucheck`` with the arguments of this process."""
    if sys.version_info < OLDEST:
        raise failed("found Python {}.{}, expected {}.{} or later".format(*sys.version_info[:2], *OLDEST))
    folder = unpacked(os.path.dirname(os.path.abspath(__file__)))
    sys.path[0:1] = [os.path.join(folder, "app"), os.path.join(folder, "vendor")]  # in place of the archive
    from gpucheck.__main__ import main as command

    command()


def unpacked(archive: str) -> str:
    """The folder that holds what the archive does; made if needed, shared by all processes of this user."""
    problems = []
    with zipfile.ZipFile(archive) as content:
        digest = content.read(DIGEST).decode()
        for place in places():
            try:
                return unpack(content, private(place), digest)
            except OSError as error:
                problems.append("{}: {}".format(place, error.strerror or error))
    raise failed("cannot be unpacked; set GPUCHECK_CACHE_DIR to a folder you can write\n  " + "\n  ".join(problems))


def places() -> list:
    """Where to unpack, best first: in the cache that gpucheck keeps libraries in, else among temporary files."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "gpucheck")
    chosen = os.environ.get("GPUCHECK_CACHE_DIR")
    cache = os.path.abspath(os.path.expanduser(chosen)) if chosen else cache
    temporary = os.path.join(tempfile.gettempdir(), "gpucheck-pyz-{}".format(os.getuid()))
    return [os.path.join(cache, "pyz"), temporary] if os.path.isabs(cache) else [temporary]  # no home: "~" stays


def private(folder: str) -> str:
    """Makes a folder that no other user can write to; OSError where somebody else may put code into it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    facts = os.lstat(folder)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise OSError("not a folder that this user alone can write to")
    return folder


def unpack(content: zipfile.ZipFile, place: str, digest: str) -> str:
    """Unpacks beside the final folder and moves it there in one step, unless a whole one is there."""
    folder = os.path.join(place, digest[:16])
    if whole(content, folder):
        return folder
    temporary = tempfile.mkdtemp(prefix=".new-", dir=place)
    try:
        fresh = os.path.join(temporary, "content")
        content.extractall(fresh)
        if os.path.lexists(folder):  # damaged: some of its files are gone
            os.rename(folder, os.path.join(temporary, "damaged"))
        try:
            os.rename(fresh, folder)
        except OSError:
            if not whole(content, folder):  # else another process was quicker
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def whole(content: zipfile.ZipFile, folder: str) -> bool:
    """Whether every file is there in its size."""
    try:
        sizes = {member.filename: member.file_size for member in content.infolist() if not member.is_dir()}
        return all(os.stat(os.path.join(folder, name)).st_size == size for name, size in sizes.items())
    except OSError:
        return False


def failed(message: str) -> SystemExit:
    """Says what went wrong; the exit that follows."""
    sys.stderr.write("gpucheck: {}: {}\n".format(os.path.basename(sys.argv[0]), message))
    return SystemExit(INCONCLUSIVE)


if __name__ == "__main__":
    main()
