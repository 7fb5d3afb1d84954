"""Counts the usage of AI providers: calls, tokens and money by provider and model. Runs on the event loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.hooks.provider_protocol import Usage

if TYPE_CHECKING:
    from prometheus_client import Counter

    from pipeline.metrics import Metrics

# A provider that names a new model each time must not fill Prometheus.
MODELS_AT_MOST, CURRENCIES_AT_MOST = 20, 5
OTHER = "other"


class UsageCounters:
    """The counters of all providers of one process."""

    def __init__(self, metrics: Metrics, providers: Iterable[str] = ()) -> None:
        """providers: their series exist from the start."""
        self._metrics = metrics
        self._models: dict[str, dict[str, tuple[Counter, Counter, Counter]]] = {}
        self._currencies: set[str] = set()
        # By provider and kind of amount: see `drain`.
        self._amounts: defaultdict[tuple[str, str], float] = defaultdict(float)
        for provider in providers:
            metrics.ai_calls.labels(provider, "")
            metrics.ai_cost.labels(provider, "", "USD")

    def count(self, provider: str, model: str, usage: Usage | None) -> None:
        """Count one answer of the provider, also an unusable one. model: the AI model, "" when unknown."""
        models = self._models.setdefault(provider, {})
        if model not in models:
            model = model if len(models) < MODELS_AT_MOST else OTHER
            labels = (provider, model)
            tokens = [self._metrics.ai_tokens.labels(*labels, direction) for direction in ("input", "output")]
            models[model] = self._metrics.ai_calls.labels(*labels), tokens[0], tokens[1]
        calls, input_tokens, output_tokens = models[model]
        calls.inc()
        self._amounts[provider, "calls"] += 1
        if usage is None:
            return
        input_tokens.inc(usage.input_tokens or 0)
        output_tokens.inc(usage.output_tokens or 0)
        self._amounts[provider, "input"] += usage.input_tokens or 0
        self._amounts[provider, "output"] += usage.output_tokens or 0
        if usage.cost is not None:
            currency = self._currency(usage.currency)
            self._amounts[provider, f"cost {currency}"] += usage.cost
            self._amounts[provider, f"priced {currency}"] += 1
            self._metrics.ai_cost.labels(provider, model, currency).inc(usage.cost)

    def drain(self) -> Mapping[tuple[str, str], float]:
        """Return the amounts since the last `drain`, by provider and kind of amount.

        The kinds: `calls`, `input` and `output` (tokens); by currency `cost USD`, and `priced USD`, the number of calls
        that this cost is for.
        """
        amounts, self._amounts = self._amounts, defaultdict(float)
        return amounts

    def restore(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Add amounts that could not be stored to the next `drain`."""
        for key, amount in amounts.items():
            self._amounts[key] += amount

    def _currency(self, currency: str) -> str:
        if len(self._currencies) < CURRENCIES_AT_MOST:
            self._currencies.add(currency)
        return currency if currency in self._currencies else OTHER
