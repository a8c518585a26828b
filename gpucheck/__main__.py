"""``python -m gpucheck``."""

from gpucheck.cli.app import main

if __name__ == "__main__":
    main()
