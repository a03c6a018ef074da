"""`tutor.attach`: run a cache policy on a model, for as long as a `with` block lasts.

>>> with tutor.attach(model, "sinks_window", budget=256):
...     print(model.generate("Once upon a time", max_new=1000).text)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tutor.kvcache import Policy, RaggedCache, make
from tutor.model.llama import Model


def attach(model: Model, policy: str | Policy, *, budget: int | None = None, interval: int = 1,
           **params: object) -> AbstractContextManager[Model]:
    """Every cache that `model` makes inside the block follows the policy; afterwards it makes what it made before.

    Args:
        model: a model of `tutor.load`.
        policy: a name of `tutor catalog --family kvcache`, or a finished policy.
        budget: rows per KV head and layer, sinks and recent rows included (not needed by "full").
        interval: rows above the budget at which decoding evicts.
        params: parameters of a policy given by name, e.g. `n_sink=4`.

    Raises:
        ValueError: the model is not one of `tutor.load`, or the policy cannot work with the budget.
    """
    if not isinstance(model, Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(f"model must be one that tutor.load() returned; got {kind}. "
                         "Open a Hugging Face folder of the Llama architecture with tutor.load(path)")
    chosen = make(policy, **params)
    RaggedCache.for_model(model, chosen, budget, interval=interval)    # a budget that cannot work fails here, not later

    @contextmanager
    def attached() -> Iterator[Model]:
        before = model.cache_factory
        model.cache_factory = lambda: RaggedCache.for_model(model, chosen, budget, interval=interval)
        try:
            yield model
        finally:
            model.cache_factory = before

    return attached()
