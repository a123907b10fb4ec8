"""`python -m picostep` is the command `picostep`."""

from picostep.cli import main

if __name__ == "__main__":
    main()
