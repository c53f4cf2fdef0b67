"""`gptoss` and `python -m gptoss`: the command line."""

import os
import sys


def main() -> int:
    """What the script `gptoss` calls. Ctrl-C while the modules are imported is no error."""
    try:
        from gptoss.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        os._exit(130)
    return command()


if __name__ == "__main__":
    raise SystemExit(main())
