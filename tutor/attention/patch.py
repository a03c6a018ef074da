"""A sparse method inside the model: what the loss says about keys that were left out.

Kept mass judges one head at a time; the loss judges what the whole model makes of it. A method is put into chosen
layers through the model's `attend` seam, and the text is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tutor.attention import dense
from tutor.attention.frontier import interval
from tutor.attention.partial import Partial
from tutor.attention.selection import attend_selected

if TYPE_CHECKING:
    from tutor.model.llama import Model

BLOCK = 32     # tokens whose losses are averaged before intervals are drawn: neighbours are not independent


@dataclass(frozen=True)
class DeltaNLL:
    """Loss of a text with a method in place, against exact attention.

    Attributes:
        dense, sparse: mean loss in nats a token.
        delta: `sparse - dense`; low, high: its 95 % bootstrap interval over blocks of 32 tokens.
    """

    dense: float
    sparse: float
    delta: float
    low: float
    high: float


def patched(model: Model, method: Any, *, layers: Iterable[int] | None = None) -> Callable[..., Partial]:
    """The model's `attend` seam with a method of this family in `layers` (all unless given), exact attention elsewhere.

    `method` chooses keys (`select`) or attends itself (`attend`). Each call must bring every cached row in one part.
    """
    wanted = None if layers is None else set(layers)
    if wanted and not wanted <= set(range(model.config.n_layers)):
        raise ValueError(f"layers must be in [0, {model.config.n_layers}); got {sorted(wanted)}")

    def attend(layer: int, q: Tensor, view: list, *, pos_q: Tensor, tree_mask: Tensor | None = None,
               trace: Any = None) -> Partial:
        if wanted is not None and layer not in wanted:
            return model.attend(layer, q, view, pos_q=pos_q, tree_mask=tree_mask)
        if len(view) != 1 or view[0].rope != "post" or view[0].w is not None or tree_mask is not None:
            raise ValueError(f"a method of attention needs one part of plain rotated rows and no tree mask; got "
                             f"{len(view)} parts. Use a full cache, or leave this layer out")
        k, v = view[0].k, view[0].v
        if not hasattr(method, "select"):
            part = method.attend(q, k, v, pos_q=pos_q)
        else:
            sel, _ = method.select(q, k, v=v, pos_q=pos_q)
            if q.shape[2] == 1:
                part = attend_selected(q, k, v, sel, dtype=torch.float32)
            else:      # many rows: the same numbers, faster as one masked product than as many gathers
                part = dense.attend(q, k, v, mask=sel.mask(), dtype=torch.float32, pos_q=pos_q)
        return Partial(part.o.to(q.dtype), part.lse)

    return attend


def delta_nll(model: Model, ids: Tensor, method: Any, *, layers: Iterable[int] | None = None,
              exact: Tensor | None = None) -> DeltaNLL:
    """How much worse the model predicts a text `ids (T,)` with a method in `layers`, in nats a token.

    `exact` spares a pass when many methods are compared on one text: what `model.nll(ids)` returned.
    """
    exact = (model.nll(ids) if exact is None else exact)[0].double()
    sparse = model.nll(ids, attend=patched(model, method, layers=layers))[0].double()
    blocks = torch.stack([part.mean() for part in (sparse - exact).split(BLOCK)])
    _, low, high = interval(blocks[None])
    return DeltaNLL(float(exact.mean()), float(sparse.mean()), float((sparse - exact).mean()), low, high)
