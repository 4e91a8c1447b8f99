"""The core needs torch alone, and an extra that is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


SOURCE = Path(__file__).parent.parent / "src"
NOT_CORE = {"cli", "report", "integrations", "__main__.py"}
CORE = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((SOURCE / "tpv").rglob("*.py"))
    if path.relative_to(SOURCE).parts[1] not in NOT_CORE
]


def test_the_core_imports_torch_and_the_standard_library() -> None:
    with_torch = set(run("import torch, sys; print(*sys.modules)").split())
    with_core = set(run(f"import sys, {', '.join(CORE)}; print(*sys.modules)").split())
    assert "tpv.pruning.prune" in with_core
    assert "tpv.report" not in with_core
    imported = {name.partition(".")[0] for name in with_core - with_torch}
    assert imported - set(sys.stdlib_module_names) == {"tpv"}


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


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    listed = run("import tpv; print(*dir(tpv))").split()
    assert {"estimate", "prune", "testing", "__version__"} < set(listed)
    assert not {"Any", "common", "jacobian", "model"} & set(listed)
