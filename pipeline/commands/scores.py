"""How well a provider did in `eval`: each field of each answer is right, wrong or unsure. Pure."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from pipeline.assets.asset import CORRECTABLE
from pipeline.hooks.provider_protocol import Analysis

RIGHT, WRONG, UNSURE = "right", "wrong", "unsure"


@dataclass(slots=True)
class Score:
    """What came of asking one provider. label: as it was named on the command line.

    calls: how often it was asked, repetitions included. failed: photos without an answer. stopped: why it was not asked
    about the rest, "" when it was.
    """

    label: str
    calls: int = 0
    failed: int = 0
    stopped: str = ""
    seconds: list[float] = field(default_factory=list)
    fields: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in CORRECTABLE})
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    answers: list[Analysis] = field(default_factory=list)

    def add(self, name: str, category: str, truth: Mapping[str, str], analysis: Analysis, seconds: float) -> None:
        """Count an answer. name, category, truth: of the photo."""
        self.answers.append(analysis)
        self.seconds.append(seconds)
        for each, wanted in truth.items():
            attribute = getattr(analysis, each)
            said = attribute.value if attribute is not None else ""
            outcome = UNSURE if not said else RIGHT if is_same(said, wanted) else WRONG
            self.fields[each][outcome] += 1
            if outcome == WRONG:
                found = {"photo": name, "category": category, "field": each, "wanted": wanted, "said": said}
                self.mistakes.append(found | {"confidence": attribute.confidence})

    def fail(self, reason: str) -> None:
        """Count a photo without an answer."""
        self.failed += 1
        self.failures[reason] += 1

    @property
    def costs(self) -> Mapping[str, float] | None:
        """What the answers cost, by currency; None when that is not known of some of them."""
        costs: Counter[str] = Counter()
        for analysis in self.answers:
            if analysis.usage is None or analysis.usage.cost is None:
                return None
            costs[analysis.usage.currency] += analysis.usage.cost  # type: ignore[assignment]
        return dict(costs)

    def to_seconds(self) -> dict[str, float] | None:
        """Return how long an answer took; None without any."""
        if not self.seconds:
            return None
        return {"mean": round(fmean(self.seconds), 3), "median": round(median(self.seconds), 3)}

    def tokens(self, direction: str) -> int | None:
        """Return how many input or output tokens the answers took; None when that is not known of some of them."""
        told = [getattr(analysis.usage, f"{direction}_tokens", None) for analysis in self.answers]
        counts = [count for count in told if count is not None]
        return sum(counts) if counts and len(counts) == len(told) else None

    def to_json(self) -> dict[str, Any]:
        """Return all that is known."""
        last = self.answers[-1] if self.answers else None
        costs = self.costs
        return {
            "provider": self.label,
            "aiModel": last.ai_model if last else "",
            "promptVersion": last.prompt_version if last else "",
            "answered": len(self.answers),
            "failed": self.failed,
            "failures": dict(self.failures),
            "stopped": self.stopped or None,
            "calls": self.calls,
            "fields": {
                name: {outcome: counts[outcome] for outcome in (RIGHT, WRONG, UNSURE)}
                for name, counts in self.fields.items()
            },
            "cost": None if costs is None else {currency: round(cost, 6) for currency, cost in costs.items()},
            "tokens": {"input": self.tokens("input"), "output": self.tokens("output")},
            "seconds": self.to_seconds(),
            "mistakes": self.mistakes,
        }


def is_same(said: str, wanted: str) -> bool:
    """Return whether two values name the same: capitals, accents, blanks and punctuation do not matter."""
    return _letters(said) == _letters(wanted)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.casefold())
    # Of what has neither letters nor digits every sign counts.
    return "".join(each for each in folded if each.isalnum()) or folded.strip()
