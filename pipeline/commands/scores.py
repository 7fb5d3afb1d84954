"""The score of a provider in `eval`: each field of each answer is right, wrong or unsure. Pure."""

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
    """The results of one provider.

    label: its name on the command line.
    calls: number of calls, retries included.
    failed: photos without an answer.
    stopped: why the remaining photos were not sent to it, "" when all were.
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
        """Count an answer.

        name, category, truth: of the photo.
        seconds: that the answer took.
        """
        self.answers.append(analysis)
        self.seconds.append(seconds)
        for each, wanted in truth.items():
            attribute = getattr(analysis, each)
            answer = attribute.value if attribute is not None else ""
            outcome = UNSURE if not answer else RIGHT if is_same(answer, wanted) else WRONG
            self.fields[each][outcome] += 1
            if outcome == WRONG:
                mistake = {"photo": name, "category": category, "field": each, "wanted": wanted, "said": answer}
                self.mistakes.append(mistake | {"confidence": attribute.confidence})

    def fail(self, reason: str) -> None:
        """Count a photo without an answer."""
        self.failed += 1
        self.failures[reason] += 1

    @property
    def costs(self) -> Mapping[str, float] | None:
        """The cost of all answers by currency; None when the cost of any is unknown."""
        costs: Counter[str] = Counter()
        for analysis in self.answers:
            if analysis.usage is None or analysis.usage.cost is None:
                return None
            costs[analysis.usage.currency] += analysis.usage.cost  # type: ignore[assignment]
        return dict(costs)

    def to_seconds(self) -> dict[str, float] | None:
        """Return mean and median seconds of an answer; None without answers."""
        if not self.seconds:
            return None
        return {"mean": round(fmean(self.seconds), 3), "median": round(median(self.seconds), 3)}

    def tokens(self, direction: str) -> int | None:
        """Return the number of tokens of all answers; None when that of any is unknown. direction: input or output."""
        reported = [getattr(analysis.usage, f"{direction}_tokens", None) for analysis in self.answers]
        counts = [count for count in reported if count is not None]
        return sum(counts) if counts and len(counts) == len(reported) else None

    def to_json(self) -> dict[str, Any]:
        """Return the whole score."""
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


def is_same(answer: str, wanted: str) -> bool:
    """Return whether two values name the same thing; capitals, accents, blanks and punctuation do not matter."""
    return _letters(answer) == _letters(wanted)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.casefold())
    # A text without letters and digits is compared as it is.
    return "".join(each for each in folded if each.isalnum()) or folded.strip()
