"""What a report shows, and its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpv.common.errors import TPVError
from tpv.common.files import put_text
from tpv.results import LinearityResult, StabilityResult, TPVResult
from tpv.results.serialization import read_json

FORMAT, VERSION = "tpv-report", 1
_KINDS: dict[str, type[StabilityResult] | type[TPVResult]] = {
    "StabilityResult": StabilityResult,
    "TPVResult": TPVResult,
}


@dataclass(frozen=True)
class Entry:
    """One perturbation.

    Attributes:
        perturbation: its text.
        result: train and test, or train alone where there are no test data.
        linearity: whether the first-order approximation holds at this size; None for the headline, whose
            size is arbitrary.
        notes: warnings that tpv gave meanwhile.
    """

    perturbation: str
    result: StabilityResult | TPVResult
    linearity: LinearityResult | None = None
    notes: tuple[str, ...] = ()

    @property
    def fitted(self) -> bool:
        """Whether δ was fitted on the training inputs, as label noise is: train TPV is then in sample."""
        return "train_outputs" in self.train.metadata

    @property
    def stability(self) -> StabilityResult | None:
        """Train against test, None without test data."""
        return self.result if isinstance(self.result, StabilityResult) else None

    @property
    def train(self) -> TPVResult:
        """On the training inputs."""
        return self.result.train if isinstance(self.result, StabilityResult) else self.result

    @property
    def shown(self) -> TPVResult:
        """On the test inputs where there are some, else on the training inputs."""
        return self.result.test if isinstance(self.result, StabilityResult) else self.result

    @property
    def sides(self) -> dict[str, TPVResult]:
        """The results of label noise by what it was evaluated on: those that are to be compared follow each
        other.
        """
        return self.stability.sides if self.stability else {"train, in sample": self.train}

    def parts(self) -> list[tuple[str, TPVResult | LinearityResult]]:
        """Everything computed, by what it was computed on or for."""
        parts: list[tuple[str, TPVResult | LinearityResult]] = [("train", self.train)]
        if self.stability:
            parts.append(("test", self.stability.test))
        if self.stability and self.stability.cross_fitted and self.stability.test_of_halves:
            parts += [
                ("cross-fitted", self.stability.cross_fitted),
                ("test of halves", self.stability.test_of_halves),
            ]
        return [*parts, ("linearity", self.linearity)] if self.linearity else parts

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        linearity = self.linearity.to_dict() if self.linearity else None
        return {
            "perturbation": self.perturbation,
            "result": self.result.to_dict(),
            "linearity": linearity,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Entry:
        """The inverse of :meth:`to_dict`."""
        linearity = saved["linearity"]
        return cls(
            saved["perturbation"],
            _KINDS[saved["result"]["type"]].from_dict(saved["result"]),
            LinearityResult.from_dict(linearity) if linearity else None,
            tuple(saved.get("notes", ())),
        )


@dataclass(frozen=True)
class Report:
    """Everything on one page.

    Attributes:
        title: what was measured.
        headline: ``Isotropic(1.0)``, whose TPV is Tr(H_eff).
        entries: the perturbations that were asked for.
        settings: limit, estimator, seed, output, layers, examples and draws of the linearity check, examples
            of label noise and why it is left out, if it is.
    """

    title: str
    headline: Entry
    entries: tuple[Entry, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def all_entries(self) -> tuple[Entry, ...]:
        """The headline and the rest."""
        return (self.headline, *self.entries)

    @property
    def plain(self) -> tuple[Entry, ...]:
        """The perturbations but label noise."""
        return tuple(entry for entry in self.entries if not entry.fitted)

    @property
    def noise(self) -> tuple[Entry, ...]:
        """Label noise."""
        return tuple(entry for entry in self.entries if entry.fitted)

    @property
    def noise_left_out(self) -> str | None:
        """Why the default label noise is not there."""
        return self.settings.get("label_noise_left_out")

    @property
    def output(self) -> str:
        """The output space."""
        return str(self.settings.get("output", "logits"))

    @property
    def unit(self) -> str:
        """Of every value in it."""
        return self.headline.shown.metadata.get("unit") or "squared units of the outputs"

    @property
    def trace(self) -> str:
        """The headline in symbols."""
        return "½ Tr(E[JᵀFJ])" if self.output == "kl" else "Tr(H_eff)"

    def noted(self, key: str) -> dict[str, list[str]]:
        """Reason → names, of a metadata list (whose reason is "") or mapping over all results."""
        grouped: dict[str, dict[str, None]] = {}
        for entry in self.all_entries:
            for _, result in entry.parts():
                values = result.metadata.get(key, [])
                reasons = values if isinstance(values, dict) else dict.fromkeys(values, "")
                for name, why in reasons.items():
                    grouped.setdefault(why, {})[name] = None
        return {why: list(names) for why, names in grouped.items()}

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text, written to ``path`` too if one is given."""
        contents = {
            "format": FORMAT,
            "version": VERSION,
            "title": self.title,
            "settings": self.settings,
            "headline": self.headline.to_dict(),
            "entries": [entry.to_dict() for entry in self.entries],
        }
        text = json.dumps(contents, indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            put_text(Path(path), text + "\n")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Report:
        """A report from JSON text, or from a file (a ``Path``, or a string that does not start with "{").

        Raises:
            TPVError: if it is not one, or of another version.
        """
        saved = read_json(source)
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise TPVError(f"this is not a saved report: its format is not {FORMAT!r}.")
        if saved.get("version") != VERSION:
            raise TPVError(
                f"this report has version {saved.get('version')!r}, and this tpv reads version {VERSION}."
            )
        entries = tuple(map(Entry.from_dict, saved["entries"]))
        return cls(saved["title"], Entry.from_dict(saved["headline"]), entries, saved["settings"])
