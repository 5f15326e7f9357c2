"""The console script, and `python -m memory_cli`: Ctrl-C is caught from the first import on."""

import sys


def main() -> None:
    """Run the command line of this process."""
    try:
        from memory_cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
