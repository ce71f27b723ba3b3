"""`python -m preceptor` is `preceptor`."""

from __future__ import annotations

import sys

from preceptor.cli import main

if __name__ == "__main__":
    sys.exit(main())
