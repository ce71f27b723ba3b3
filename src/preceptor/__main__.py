"""`python -m preceptor` is `preceptor`."""

from __future__ import annotations

from preceptor.cli import main
from preceptor.distributed import end

if __name__ == "__main__":
    end(main())
