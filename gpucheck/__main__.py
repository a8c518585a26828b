"""``python -m gpucheck``, and what the installed command runs."""

from __future__ import annotations

import sys
from typing import NoReturn

INTERRUPTED = 130  # exit code; see gpucheck.model.errors


def main() -> NoReturn:
    """Runs the command line; Ctrl-C while it is still being loaded is one line too."""
    try:
        from gpucheck.cli.start import start

        start()
    except KeyboardInterrupt:
        print("gpucheck: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
