"""The core needs torch alone, and an extra that is missing is named."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = (
    "pandas",
    "matplotlib",
    "rich",
    "typer",
    "click",
    "jinja2",
    "sklearn",
    "datasets",
    "transformers",
    "safetensors",
    "scipy",
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_tpv_imports_no_extra() -> None:
    baseline = set(run("import torch, sys; print(*sys.modules)").split())
    found = set(run("import tpv, sys; print(*sys.modules)").split())
    new = {name.partition(".")[0] for name in found - baseline}
    assert not new & set(EXTRAS)
    assert {name for name in new if name not in sys.stdlib_module_names} == {"tpv"}


def test_a_missing_extra_is_named() -> None:
    code = """
import sys
sys.modules[{module!r}] = None
import torch, tpv
result = tpv.estimate(torch.nn.Linear(2, 2), torch.ones(3, 2), tpv.Isotropic(0.1))
try:
    result.{call}()
except ImportError as error:
    print(error)
"""
    assert "pip install 'tpv[pandas]'" in run(code.format(module="pandas", call="to_pandas"))
    assert "pip install 'tpv[plot]'" in run(code.format(module="matplotlib", call="plot"))
