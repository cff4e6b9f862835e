"""The first lines of a worker process. Its one argument is the number of the socket to the head."""

from __future__ import annotations

import sys

from .start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
