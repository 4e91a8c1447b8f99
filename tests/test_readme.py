"""The README's code runs, and prints what the README shows but for digits that depend on the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
README = Path(__file__).parent.parent / "README.md"


def shape(text: str) -> list[str]:
    """Lines with numbers and alignment taken out, and rankings that rest on them."""
    lines = (re.sub(r"[\d.]+(e-?\d+)?", "#", re.sub(r"\s+", " ", line)).strip() for line in text.splitlines())
    return sorted(line for line in lines if line)


BLOCKS = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=["first", "any model", "label noise", "pruning"])
def test_the_code_of_the_readme_prints_its_output(code: str, output: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.set_num_threads(1)\n{code}"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert shape(ran.stdout) == shape(output)


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = (README, README.parent / "CONTRIBUTING.md", *(README.parent / "docs").rglob("*.md"))
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
