"""Selection: more documents are drawn than a step trains on, each is valued exactly, and the batch
is laid out from those that are chosen.

The value of a document is ``<u, grad_S L_d>``, ``L_d`` the mean loss of its predicted tokens: how
fast the feedback loss falls along ``u`` when the learner descends on this document. All documents
of a batch are valued by one pass of the suffix along ``u``, without a backward pass.

A step is as large as a plain one: windows are filled with chosen documents until they hold as many
tokens as a drawn batch does on average. Which are chosen is decided over all processes together.

Published forms choose among sequences of one length, one a row. Here a document is what is chosen,
whatever its length, so that a budget in tokens buys the same.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vpretrain.language.data.batch import TokenBatch, laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Stream
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.steering.arms import LanguageArm, Site
from vpretrain.language.steering.baselines import OneHot
from vpretrain.language.steering.rules import Candidates
from vpretrain.method.reliability import correlation
from vpretrain.method.roles import Metrics, State, ValueFunction
from vpretrain.method.selection import Selected, Selector
from vpretrain.method.value import AlignmentName
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error

log = logging.getLogger(__name__)

STARVED_DOCUMENTS = 200
"""Documents of a source that are drawn without one being chosen before a warning says so."""


class Choice(ABC):
    """From the values of documents to the order in which they are taken."""

    uses_values: ClassVar[bool] = True

    @abstractmethod
    def order(self, values: Tensor, draw: torch.Generator) -> Tensor:
        """Indices of ``values`` ``[n]``, those to take first in front.

        Args:
            values: float64, of the CPU; the same on all processes.
            draw: of random choices; likewise.
        """


@dataclass(frozen=True)
class Drawn:
    """What all processes drew for a step, in the order of a single one.

    Args:
        rows: of every batch, the documents of each row.
        values: float64 of all documents in that order, under each feedback batch ``[F, n]``; zeros
            where the choice asks for none.
        width: tokens of the longest row, padding included.
    """

    rows: list[list[list[Document]]]
    values: Tensor
    width: int

    @property
    def documents(self) -> list[Document]:
        return [document for batch in self.rows for row in batch for document in row]

    @classmethod
    def gathered(cls, batches: Sequence[TokenBatch], values: Sequence[Tensor]) -> Drawn:
        """From this process's share of the batches and, for each, the values of its documents under
        each feedback batch ``[F, documents]``."""
        own = []
        for batch, of_batch in zip(batches, values, strict=True):
            worth = iter(of_batch.t().tolist())
            own.append([[(each, next(worth)) for each in row] for row in _rows(batch)])
        shares = distributed.all_gather_object(
            (own, max(batch.input_ids.shape[1] for batch in batches))
        )
        rows, figures = [], []
        for of_batch in zip(*(share for share, _ in shares), strict=True):
            # Rank r of W holds rows r, r + W, ... of every batch.
            whole = [row for rows_ in zip(*of_batch, strict=True) for row in rows_]
            rows.append([[document for document, _ in row] for row in whole])
            figures += [figure for row in whole for _, figure in row]
        return cls(rows, torch.tensor(figures, dtype=torch.float64).t(), max(w for _, w in shares))


def _rows(batch: TokenBatch) -> list[list[Document]]:
    """The documents of each row of a batch."""
    return [
        [batch.documents[at] for at in row.unique_consecutive().tolist() if at >= 0]
        for row in batch.document
    ]


def document_values(context: Context, gradient: Tensor) -> Tensor:
    """``<u, grad_S L_d>`` of every document of a batch, ``[documents]``.

    The slow definition::

        for d in documents:
            values[d] = inner(u, grad(mean(losses_of[d]), S))

    Args:
        context: of the batch.
        gradient: ``[N, 1]``, ``dV/d mass`` of one-hot targets.
    """
    document, count = context.document, len(context.batch.documents)
    counts = document.bincount(minlength=count)
    sums = gradient.new_zeros(count, dtype=torch.float64).index_add(
        0, document, gradient[:, 0].double()
    )
    if context.batch.loss_mean == "example":  # a document's share of the batch's loss is 1 / D
        return sums * (counts > 0).sum()
    return sums * len(document) / counts.clamp_min(1)


class DocumentSelector(Selector[TokenBatch, Context]):
    """Fills the batches of a step with chosen documents.

    Args:
        learner: whose loss is valued; without dropout.
        choice: what follows from the values.
        draws: see :class:`vpretrain.method.selection.Selector`.
        pad_id: what rows are filled up with.
        seed: of random choices.
    """

    def __init__(
        self, learner: CausalLearner, choice: Choice, *, draws: int, pad_id: int, seed: int
    ) -> None:
        self.learner, self.choice, self.draws, self.pad_id = learner, choice, draws, pad_id
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn_of: Counter[str] = Counter()
        self.chosen_of: Counter[str] = Counter()

    def select(
        self, drawn: Sequence[TokenBatch], value_of: ValueFunction[Context]
    ) -> Selected[TokenBatch]:
        pool = self.valued(drawn, value_of)
        values, documents = pool.values.mean(dim=0), pool.documents
        order = self.choice.order(values, self.generator)
        rows, chosen = self._filled(pool, order)
        metrics = self._figures(documents, chosen, values)
        if len(pool.values) > 1:
            metrics |= self._cross_fitted(pool, len(chosen))
        return Selected(self._laid_out(drawn, rows, pool.width), metrics)

    def valued(self, drawn: Sequence[TokenBatch], value_of: ValueFunction[Context]) -> Drawn:
        """The documents with their values."""
        if not self.choice.uses_values:
            return Drawn.gathered(drawn, [torch.zeros(1, len(b.documents)) for b in drawn])
        values = []
        with evaluating(self.learner.model):
            for batch in drawn:
                with torch.no_grad():
                    context = self.learner.forward(batch)
                probe = Candidates.among(context, 1, weighted=True)
                estimates = value_of.each(context, probe)
                values.append(
                    torch.stack([document_values(context, each.gradient[0]) for each in estimates])
                )
        return Drawn.gathered(drawn, values)

    def _filled(self, pool: Drawn, order: Tensor) -> tuple[list[list[Document]], list[int]]:
        """Rows for the batches of a step, over all processes, and the documents that are in them.

        The first of the order are taken until there are as many tokens as a drawn batch has on
        average (unpacked: as many documents), and no fewer documents than rows. Long ones are
        placed first, each in the row with the most room; one that fits nowhere is left out.
        """
        documents = pool.documents
        count = sum(map(len, pool.rows)) // self.draws
        packed = self.learner.packed
        wanted = sum(len(document.ids) for document in documents) / self.draws if packed else 0
        taken: list[int] = []
        tokens = 0
        for at in order.tolist():
            if tokens >= wanted and len(taken) >= count:
                break
            taken.append(at)
            tokens += len(documents[at].ids)
        rows: list[list[Document]] = [[] for _ in range(count)]
        room, chosen = [pool.width if packed else 1] * count, []
        for at in sorted(taken, key=lambda at: -len(documents[at].ids)):
            row = max(range(count), key=room.__getitem__)
            size = len(documents[at].ids) if packed else 1
            if size <= room[row]:
                rows[row].append(documents[at])
                room[row] -= size
                chosen.append(at)
        return rows, chosen

    def _laid_out(
        self, drawn: Sequence[TokenBatch], rows: Sequence[Sequence[Document]], width: int
    ) -> tuple[TokenBatch, ...]:
        """This process's share of the step's batches."""
        count = len(drawn) // self.draws
        size = len(rows) // count
        packed = self.learner.packed
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        widths = [width if packed else max(len(row[0].ids) for row in batch) for batch in batches]
        return tuple(
            laid_out(
                batch[distributed.rank() :: distributed.world()],
                width=width,
                pad_id=self.pad_id,
                padding_apart=packed,
                loss_mean=drawn[0].loss_mean,
            )
            for batch, width in zip(batches, widths, strict=True)
        )

    def _figures(
        self, documents: Sequence[Document], chosen: Sequence[int], values: Tensor
    ) -> Metrics:
        """How many documents were kept and dropped, and each source's share of the tokens."""
        metrics: Metrics = {
            "documents_kept": float(len(chosen)),
            "documents_dropped": float(len(documents) - len(chosen)),
        }
        if self.choice.uses_values:
            metrics["value_kept"] = float(values[list(chosen)].mean())
            metrics["value_drawn"] = float(values.mean())
        taken = [documents[at] for at in chosen]
        for name, some in (("drawn", documents), ("chosen", taken)):
            tokens: Counter[str] = Counter()
            for document in some:
                tokens[document.source] += len(document.ids)
            whole = tokens.total()
            metrics |= {f"{name}/{source}": n / whole for source, n in sorted(tokens.items())}
        self._watch_sources(documents, taken)
        return metrics

    def _watch_sources(self, documents: Sequence[Document], taken: Sequence[Document]) -> None:
        """Says once of each source that it is drawn and never chosen."""
        before = self.drawn_of.copy()
        self.drawn_of.update(document.source for document in documents)
        self.chosen_of.update(document.source for document in taken)
        for source, count in self.drawn_of.items():
            crossed = before[source] < STARVED_DOCUMENTS <= count
            if crossed and not self.chosen_of[source] and distributed.rank() == 0:
                log.warning(
                    "none of %d documents drawn from source %r was chosen: the learner trains on "
                    "nothing of it",
                    count,
                    source,
                )

    def _cross_fitted(self, pool: Drawn, kept: int) -> Metrics:
        """What documents chosen under one half of the feedback are worth under the other, above the
        mean of all that were drawn; noise gains nothing by it."""
        halves = pool.values[0::2].mean(dim=0), pool.values[1::2].mean(dim=0)
        gains = [
            float(other[one.argsort(descending=True)[:kept]].mean() - other.mean())
            for one, other in (halves, halves[::-1])
        ]
        return {"gain": sum(gains) / 2, "agreement": correlation(*halves)}

    def state_dict(self) -> State:
        return {
            "generator": self.generator.get_state(),
            "drawn_of": dict(self.drawn_of),
            "chosen_of": dict(self.chosen_of),
        }

    def load_state_dict(self, state: State) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.drawn_of, self.chosen_of = Counter(state["drawn_of"]), Counter(state["chosen_of"])


def check_pool(selector: Selector[Any, Any] | None, stream: Stream) -> None:
    """Refuses to choose among more than the stream has.

    Raises:
        UserError: the pool of a step is larger than the stream, so that it would hold copies.
    """
    if selector is None:
        return
    rows = selector.draws * stream.batch_size
    there, pool, what = stream.tokens, rows * stream.window_tokens, "tokens"
    if not stream.packing:
        there, pool, what = stream.documents, rows, "documents"
    if pool > there:
        raise user_error(
            "designer.draws",
            f"the documents of a step are chosen among {pool:,} {what}, more than the stream has: "
            "add documents, draw less, or make data.batch_size smaller",
            value=selector.draws,
            accepted=f"a pool of at most {there:,} {what}",
        )


class Plain(OneHot):
    """One-hot targets on what is chosen by feedback."""

    uses_feedback = True


class SelectionArm(LanguageArm):
    """Of arms that choose what of the stream is trained on."""

    selects = True

    draws: Annotated[int, Field(ge=2)] = 2
    """m: batches that are drawn for one that is trained on; they are what is chosen among."""

    def choice(self) -> Choice:
        raise NotImplementedError

    def build(self, site: Site) -> OneHot:
        return Plain()

    def selector(self, site: Site) -> DocumentSelector:
        return DocumentSelector(
            site.learner, self.choice(), draws=self.draws, pad_id=site.pad_id, seed=site.seed
        )


class ValuedSelectionArm(SelectionArm):
    """Of those that choose by value."""

    alignment: Literal["dot", "optimizer_aware"] = "dot"
    """What a document is valued by, whatever ``value.alignment`` is: the inner product with g_down
    over S, or with P g_down."""

    @property
    def stated_for(self) -> AlignmentName:
        return self.alignment
