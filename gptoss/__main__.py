"""`python -m gptoss`: the command line."""

from gptoss.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
