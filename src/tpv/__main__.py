"""``tpv`` and ``python -m tpv``."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("typer", "rich", "matplotlib", "jinja2")


def main() -> None:
    """The console script ``tpv``."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(f"tpv: the command line needs {', '.join(missing)}: pip install 'tpv[cli]'", file=sys.stderr)
        sys.exit(2)
    try:
        from tpv.cli.app import app

        app()
    except KeyboardInterrupt:
        print("tpv: interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
