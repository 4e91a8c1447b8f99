"""The code of the pages for contributors does what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tpv.jacobian.formulas import registry

PAGES = Path(__file__).parent.parent / "docs" / "contributing"


def run(page: str, **names: Any) -> dict[str, Any]:
    """The names that the page's blocks of Python define, run one after the other."""
    namespace: dict[str, Any] = {"__name__": page, **names}
    for block in re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text("utf-8"), re.DOTALL):
        exec(compile(block, page, "exec", dont_inherit=True), namespace)
    return namespace


def test_a_layer_formula(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_FORMULAS", dict(registry._FORMULAS))
    run("layer-formula", _FORMULAS=registry._FORMULAS)
    assert re.search(r"^PReLU .* 1\.weight", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("page", ["perturbation", "estimator"])
def test_the_other_pages(page: str) -> None:
    run(page)
