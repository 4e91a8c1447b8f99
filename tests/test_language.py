"""The code and the pages use the field's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = (
    "src/tpv/**/*",
    "docs/**/*.md",
    "*.md",
    "benchmarks/**/*.py",
    "examples/*.py",
    "experiments/**/*.py",
)
KINDS = {".py", ".md", ".jinja"}
AVOIDED = {
    "law": (r"\blaws?\b", "perturbation, distribution"),
    "foreseen, told": (r"\bfore(seen|told|tells?)\b|\btold\b(?! apart)|(?<!cannot )\btells?\b(?!.* apart)", "predicted, reported"),
    "read on": (r"\b(is|are|was|were|be) read (on|with|across|over)\b|\bread on\b", "evaluated on"),
    "hold the network less": (r"\bholds? (a|the) network\b", "constrain"),
    "first order wavers": (r"\bfirst order (wavers|fails|holds|enough|is enough)\b", "first-order approximation …"),
    "mislead": (r"\bmisleads?\b|\btraining inputs tell\b", "is / is not a good proxy"),
    "what counts": (r"\bof the predictions counts?\b", "output space"),
    "quotient": (r"\bquotients?\b", "ratio"),
    "draws alone": (r"\bdraws alone\b", "Monte-Carlo standard error"),
    "needs company": (r"\bcompany\b|needs_company", "padded to two examples"),
    "put back": (r"\bput back\b|\bputs back\b|\bafresh\b|\banew\b|\bsays? so\b", "restore, from scratch, report"),
    "is no tensor": (r"(?<!there )\bis no (tensor|module|function|number)\b", "is not a …"),
    "meet, held": (r"\b_met\b|\b_held\b|\bHeld\b", "bind, bound"),
    "send whole": (r"send_whole|\bsen[dt]s? whole\b|\bunreached\b|\bstale\b|\barrivals?\b", "fall back, unused, modified in place"),
    "yardstick": (r"\byardsticks?\b|\bjudges?\b|\breaders\b|\bdear(er|est)?\b", "meter, rescorer, consumers, expensive"),
    "class names": (r"\bclass (Piece|Setting|Procedure|Arrivals)\b", "Chunk, Problem, EstimatorRun"),
    "facts": (r"\bfacts\b", "metadata, extra fields"),
    "moved": (r"\b(what|has|have) moved\b|\bmoved:|\bhow far .* moves?\b|\bmoved_test\b", "output change"),
    "really refitting": (r"\breally (re|train)\w*|\bmend(s|ed|ing)?\b", "retraining, corrected"),
    "members=": (r"\bmembers=|\bsquares=", "parameters=, reduction="),
    "names that say nothing": (r"\b(found|kept|chosen|given|held)\b(: [^=]+)? = |\bfor (found|kept|chosen|given|held) in\b", "what the variable holds"),
}  # fmt: skip
ALLOWED = ()
"""(file, text) of lines in which a word has its ordinary meaning."""


def lines() -> Iterator[tuple[str, int, str]]:
    """(file, number, text) of every line of code and prose."""
    for path in sorted({path for place in PLACES for path in ROOT.glob(place)}):
        if path.suffix in KINDS:
            for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield str(path.relative_to(ROOT)), number, text


@pytest.mark.parametrize("name", AVOIDED)
def test_the_words_of_the_field(name: str) -> None:
    pattern, better = AVOIDED[name]
    places = [
        f"{file}:{number}: {text.strip()}"
        for file, number, text in lines()
        if re.search(pattern, text) and not any(file == f and t in text for f, t in ALLOWED)
    ]
    assert not places, f"write {better!r} instead:\n" + "\n".join(places)
