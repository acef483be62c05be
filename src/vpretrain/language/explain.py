"""What every token of the stream is worth, and what the designer made of that: numbers first, the page after them.

Values are per token: ``s_t(v) = N dV/d mass_t(v)`` with N predicted tokens in the batch, so that V of a task is the mean
over tokens of ``sum_v mass_t(v) s_t(v)`` and batches of unlike size can be put together.

Shapes: N predicted tokens of a batch, K candidates, M the designer's own candidates (1 where it chooses none).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpretrain.appraisal import Appraiser
from vpretrain.contracts import Designer, Parts, detached
from vpretrain.errors import user_error
from vpretrain.explain import last_record, listening, restore_designer, write_page
from vpretrain.language.arms import ARMS
from vpretrain.language.designers import Reliability, SourceWeights, TokenWeights, correlation
from vpretrain.language.learned import Field, Learned
from vpretrain.language.learner import Context
from vpretrain.language.modality import Language, Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.rows import Document
from vpretrain.language.stream import Stream
from vpretrain.language.targets import (
    SoftTargets,
    anchored,
    candidate_log_probabilities,
    candidates,
    mix,
    one_hot,
    standardised,
)
from vpretrain.report.elements import Markup, joined, name, printable, tag
from vpretrain.train import seed_everything

SEED_OFFSET = 7919
"""Added to the run's seed for the order in which documents are looked at, so that they are not its first batches."""
SHOWN = 6
"""Documents at either end of the page that are open from the start."""
STEERED_SHOWN = 6
"""Steered tokens of a document whose candidates are listed."""
LEVELS, CLIP = 6, 3.0
"""Shades of a colour, and the standardised value at which it is fullest."""


@dataclass(frozen=True)
class Look:
    """One batch looked at; everything is detached.

    Args:
        ids: ``[N, K]`` candidates, the true token first.
        log_p: ``[N, K]`` the learner's log probabilities of them.
        each: ``[F, N, K]`` token values under each of F feedback batches.
        task: what the designer asks for, ``[N, M]``.
        own: ``[N, M]`` token values of the designer's candidates.
        predicted: ``[N, K]`` what a learned designer thinks that the values are, in its units; None for the others.
        document, at: ``[N]`` index into ``documents``, and the token's place in it.
        documents: of the batch.
    """

    ids: Tensor
    log_p: Tensor
    each: Tensor
    task: SoftTargets
    own: Tensor
    predicted: Tensor | None
    document: Tensor
    at: Tensor
    documents: tuple[Document, ...]

    @property
    def values(self) -> Tensor:
        """``[N, K]``: the mean over the feedback batches."""
        return self.each.mean(dim=0)


@dataclass(frozen=True)
class Worth:
    """V of four tasks on the same tokens, a figure a token.

    Args:
        onehot, designer: plain targets, and those of the run's designer.
        closed_form: the recipe's anchored rule on the exact values.
        bound: the same rule as its temperature goes to 0 without a clip: no targets over these candidates and under this
            ``gate_max`` are worth more.
        agreement: Pearson's r of the values under two halves of the feedback; None if it is a single batch.
        correlation: Pearson's r of a learned designer's values with the exact ones; None for the others.
        tokens: how many were looked at.
    """

    onehot: float
    designer: float
    closed_form: float
    bound: float
    agreement: float | None
    correlation: float | None
    tokens: int


@dataclass(frozen=True)
class Steered:
    """What stands beside one true token: its place in the document, the candidates with p, q, s, and the gate."""

    at: int
    ids: list[int]
    p: list[float]
    q: list[float]
    s: list[float]
    gate: float


@dataclass(frozen=True)
class Piece:
    """One document of the sample: values by place (None: not predicted), and its steered tokens, the most first."""

    document: Document
    values: list[float | None]
    weights: list[float | None]
    steered: list[Steered]

    @property
    def valued(self) -> list[float]:
        """The values of its predicted tokens."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """What the document is worth: the mean value of its tokens."""
        return sum(self.valued) / len(self.valued)


def explain_language(recipe: LanguageRecipe, folder: Path, *, documents: int, out: Path) -> dict[str, Any]:
    """Opens the run again and writes the page; see :func:`vpretrain.explain.explain`.

    Args:
        recipe: of the run.
        folder: the run folder.
        documents: how many are looked at; the last batch's others are left off the page, but not out of the figures.
        out: the HTML file.
    """
    section = recipe.learner.model_copy(
        update={"model": str(folder.resolve() / "model"), "prepare": None, "config": None, "tokenizer": None}
    )
    recipe = recipe.model_copy(update={"learner": section})
    seed_everything(recipe)
    modality = Language()
    materials = modality.load(recipe)
    parts = modality.build(recipe, materials)
    restore_designer(parts, folder)
    parts.learner.model.eval()
    data = recipe.data
    stream = Stream(
        materials.sources, batch_size=data.batch_size, window_tokens=data.window_tokens,
        seed=recipe.seed + SEED_OFFSET, pad_id=materials.pad_id,
    )  # fmt: skip
    appraiser = listening(recipe, parts, stream)
    looks = list(looked_at(parts, appraiser, stream, recipe.designer.candidates, documents))
    worth = worths(looks, recipe)
    pieces = [piece for look in looks for piece in pieces_of(look)][:documents]
    if not all(math.isfinite(value) for piece in pieces for value in piece.valued):
        raise user_error("RUN", "token values are not finite; the model of this run is broken", value=str(folder))
    sources = by_source(pieces)
    found = {
        "page": str(out),
        "regret": worth.bound - worth.designer,
        "value": {
            "onehot": worth.onehot,
            "designer": worth.designer,
            "closed_form": worth.closed_form,
            "bound": worth.bound,
        },
        "sources": {source: total / len(values) for source, (total, values, _) in sources.items()},
        "documents": len(pieces),
        "tokens": worth.tokens,
        "correlation": worth.correlation,
        "agreement": worth.agreement,
    }
    view = View(recipe, folder, materials, pieces, worth, parts.designer, last_record(folder))
    write_page(out, title=f"{recipe.says} · explain", style=STYLE, body=view.page())
    return found


def looked_at(parts: Parts, appraiser: Appraiser, stream: Stream, count: int, documents: int) -> Iterator[Look]:
    """Batches until so many documents were seen; neither learner nor designer learns from them."""
    seen = 0
    while seen < documents:
        context: Context = parts.learner.observe(next(stream))
        yield look(context, parts.designer, appraiser, count)
        seen += len(context.batch.documents)


def look(context: Context, designer: Designer, appraiser: Appraiser, count: int) -> Look:
    """Exact values of K candidates a token, and what the designer makes of the batch."""
    ids = candidates(context.logits, context.labels, count)
    tokens = len(ids)
    probe = one_hot(context.labels, count, ids)
    each = tokens * torch.stack([found.gradient[0] for found in appraiser.each(context, probe)])
    task: SoftTargets = detached(designer.construct(context, appraiser))
    if torch.equal(task.ids, ids[:, : task.ids.shape[1]]):
        own = each.mean(dim=0)[:, : task.ids.shape[1]]
    else:  # candidates of its own
        own = tokens * appraiser(context, task).gradient[0]
    log_p = candidate_log_probabilities(context.logits.detach(), ids)
    predicted = None
    if isinstance(designer, Learned):
        with torch.no_grad():
            predicted = designer.network(context, ids, log_p, designer.embedding)[0]
    row, at = context.where
    where = context.batch.document[row, at + 1].cpu()
    place = context.batch.position_ids[row, at + 1].cpu()
    return Look(ids, log_p, each.detach(), task, own.detach(), predicted, where, place, context.batch.documents)


def worths(looks: Sequence[Look], recipe: LanguageRecipe) -> Worth:
    """V of one-hot targets, of the designer's, of the recipe's closed form and of the bound, on the same batches."""
    section, reliability = recipe.designer, Reliability(recipe.value.shrink)
    for seen in looks:
        reliability.hear(list(seen.each))
    sums = dict.fromkeys(("onehot", "designer", "closed_form", "bound"), 0.0)
    for seen in looks:
        values = seen.values.double()
        rules = {
            "closed_form": (section.temperature, section.clip, reliability.factor),
            "bound": (1e-9, math.inf, 1.0),
        }
        for rule, (temperature, clip, factor) in rules.items():
            proposal, gate = anchored(
                standardised(values), seen.log_p.double(), temperature=temperature, clip=clip,
                gate_max=section.gate_max, reliability=factor,
            )  # fmt: skip
            sums[rule] += float((mix(seen.ids, proposal, gate).mass * values).sum())
        sums["onehot"] += float(values[:, 0].sum())
        sums["designer"] += float((seen.task.mass.double() * seen.own.double()).sum())
    tokens = sum(len(seen.ids) for seen in looks)
    pairs = [(seen.predicted, standardised(seen.values)) for seen in looks if seen.predicted is not None]
    return Worth(
        **{task: total / tokens for task, total in sums.items()},
        agreement=reliability.agreement,
        correlation=correlation(*(torch.cat(side) for side in zip(*pairs, strict=True))) if pairs else None,
        tokens=tokens,
    )


def pieces_of(look: Look) -> Iterator[Piece]:
    """The documents of a batch, each with the values of its tokens."""
    weight = look.task.mass.sum(dim=1)
    gate = torch.where(weight > 0, 1 - look.task.mass[:, 0] / weight.clamp_min(1e-12), torch.zeros_like(weight))
    values, p = look.values, look.log_p.exp()
    for index, document in enumerate(look.documents):
        chosen = (look.document == index).nonzero()[:, 0]
        by_place: list[float | None] = [None] * len(document.ids)
        weights: list[float | None] = [None] * len(document.ids)
        for n, at in zip(chosen.tolist(), look.at[chosen.to(look.at.device)].tolist(), strict=True):
            by_place[at], weights[at] = float(values[n, 0]), float(weight[n])
        ranked = sorted(chosen.tolist(), key=lambda n: -float(gate[n]))
        steered = [
            Steered(
                int(look.at[n]), look.task.ids[n].tolist(), p[n, : look.task.ids.shape[1]].tolist(),
                (look.task.mass[n] / weight[n]).tolist(), look.own[n].tolist(), float(gate[n]),
            )
            for n in ranked[:STEERED_SHOWN]
            if gate[n] > 0.01
        ]  # fmt: skip
        if len(chosen):
            yield Piece(document, by_place, weights, steered)


def by_source(pieces: Iterable[Piece]) -> dict[str, tuple[float, list[float], int]]:
    """Sum of the values, the values, and the number of documents of each source, by name."""
    found: dict[str, tuple[float, list[float], int]] = {}
    for piece in pieces:
        total, values, count = found.get(piece.document.source, (0.0, [], 0))
        found[piece.document.source] = (total + sum(piece.valued), values + piece.valued, count + 1)
    return found


def spelled(tokenizer: Any, ids: Sequence[int], reach: int = 8) -> list[str]:
    """The text of each token in its place: put together they are the document's text.

    A token that ends within a character has no text of its own (''); the one that completes it has the whole.

    Args:
        tokenizer: the learner's.
        ids: of the document.
        reach: how many tokens before it a token's text may depend on.
    """

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts, done = [], 0  # tokens before `done` end with a whole character
    for at in range(len(ids)):
        start = max(0, done - reach)
        before, after = decode(ids[start:done]), decode(ids[start : at + 1])
        if after.endswith("\N{REPLACEMENT CHARACTER}") and at + 1 - done < 4 and at + 1 < len(ids):
            texts.append("")
            continue
        texts.append(after[len(before) :] if after.startswith(before) else decode(ids[done : at + 1]))
        done = at + 1
    return texts


@dataclass(frozen=True)
class View:
    """The page of one run."""

    recipe: LanguageRecipe
    folder: Path
    materials: Materials
    pieces: list[Piece]
    worth: Worth
    designer: Designer
    last: dict[str, Any]

    @property
    def scale(self) -> float:
        """The typical size of a shown token's value (root mean square): the unit of z."""
        values = [value for piece in self.pieces for value in piece.valued]
        return math.sqrt(sum(value * value for value in values) / len(values)) or 1.0

    @property
    def weighs(self) -> bool:
        """Whether the designer weights true tokens and puts nothing beside them."""
        return isinstance(self.designer, TokenWeights | SourceWeights)

    def page(self) -> Markup:
        """Legend, sources, regret, documents."""
        ranked = sorted(self.pieces, key=lambda piece: -piece.mean)
        ends = min(SHOWN, (len(ranked) + 1) // 2)
        most, rest = ranked[:ends], ranked[ends:]
        least, between = rest[len(rest) - min(ends, len(rest)) :], rest[: len(rest) - min(ends, len(rest))]
        others = ""
        if between:
            title = f"The {len(between)} documents between them" if len(between) > 1 else "The document between them"
            others = tag("details", tag("summary", title), *map(self.piece, between), class_="between")
        tokens = sum(len(piece.valued) for piece in self.pieces)
        facts = ("language", f"arm {self.recipe.arm}", f"{len(ranked)} documents", f"{tokens:,} valued tokens")
        return joined(
            tag(
                "header",
                tag("p", "vpretrain explain", class_="eyebrow"),
                tag("h1", "What each token is worth"),
                tag("p", *(tag("span", fact) for fact in facts), class_="facts-line"),
                tag("p", self.recipe.says[:1].upper() + self.recipe.says[1:], class_="beside-title"),
            ),
            self.legend(),
            section("Value by source", self.sources()),
            section("How close the designer comes to the best targets", self.regret()),
            section("Most valuable documents", *map(self.piece, most)),
            section("Least valuable documents", *map(self.piece, reversed(least))) if least else "",
            tag("section", others) if others else "",
            section("How it was made", self.provenance()),
        )

    def legend(self) -> Markup:
        """What the colours say, in plain words."""
        chips = [
            tag("span", tag("b", "more", class_="t p5"), " the feedback set wants more of this token: a model that finds "
                "it likelier does better on the verified examples"),
            tag("span", tag("b", "less", class_="t m5"), " it wants less of it"),
            tag("span", tag("b", "plain", class_="t"), " it hardly matters, mostly since the model is sure of it already"),
            tag("span", tag("b", "grey", class_="q"), " prompt or first token: never predicted, never valued"),
        ]  # fmt: skip
        strip = [tag("i", class_=f"m{level}") for level in range(LEVELS, 0, -1)]
        strip += [tag("i", class_=f"p{level}") for level in range(1, LEVELS + 1)]
        scale = tag(
            "div", tag("span", "−3"), tag("span", *strip, class_="strip", aria_hidden="true"), tag("span", "+3"),
            tag("span", "value z, in units of the typical size of a token's value on this page", class_="quiet"),
            class_="scale",
        )  # fmt: skip
        notes = []
        if self.recipe.arm in ("random_feedback", "fixed_random_direction", "shuffled_feedback"):
            said = (
                "This arm is a control, and the colours show what it heard, which is not what the feedback set wants: "
            )
            notes.append(said + ARMS[self.recipe.arm] + ".")
        if self.designer.listens and self.last.get("steered") == 0:
            notes.append(
                "When the run ended its guard had closed the gate, since steering had stopped to pay: the learner was "
                "trained on plain targets then. Shown is what the designer would ask for."
            )
        return tag(
            "div", tag("div", *chips, class_="chips"), scale,
            tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else "", class_="key",
        )  # fmt: skip

    def sources(self) -> Markup:
        """Mean value, its standard error and what it rests on, a row a source."""
        rows = []
        found = sorted(by_source(self.pieces).items(), key=lambda item: -item[1][0] / len(item[1][1]))
        means = {source: total / len(values) / self.scale for source, (total, values, _) in found}
        most = max(abs(mean) for mean in means.values()) or 1.0
        for source, (_, values, documents) in found:
            z = [value / self.scale for value in values]
            mean = means[source]
            spread = math.sqrt(sum((value - mean) ** 2 for value in z) / max(1, len(z) - 1) / len(z))
            wanted = 100 * sum(value > 0 for value in z) / len(z)
            width = f"width:{100 * abs(mean) / most:.0f}%"
            side = "pos" if mean >= 0 else "neg"
            rows.append(
                tag(
                    "tr", tag("th", name(source), scope="row"),
                    tag("td", signed(mean), tag("span", f" ± {spread:.3f}", class_="quiet"),
                        tag("span", tag("i", class_=side, style=width), class_="bar")),
                    tag("td", f"{wanted:.0f}%"), tag("td", f"{documents:,}"), tag("td", f"{len(z):,}"),
                )
            )  # fmt: skip
        head = tag("tr", *(tag("th", title, scope="col") for title in
                           ("source", "mean value z", "tokens above 0", "documents", "tokens")))  # fmt: skip
        note = "± is the standard error over tokens, as if they were independent; the documents are a sample."
        table = tag("table", tag("thead", head), tag("tbody", *rows))
        return joined(tag("div", table, class_="scroll"), tag("p", note, class_="note"))

    def regret(self) -> Markup:
        """V of the four tasks, and how far each goes from one-hot to the bound."""
        worth = self.worth
        room = worth.bound - worth.onehot
        lines = (
            ("one-hot", "plain next-token targets", worth.onehot),
            ("designer", f"what this run's arm, {self.recipe.arm}, asks for", worth.designer),
            ("closed form", "the recipe's anchored rule on exact values", worth.closed_form),
            ("bound", f"the best there is over these candidates with a gate up to {self.recipe.designer.gate_max:g}",
             worth.bound),
        )  # fmt: skip
        rows = []
        for title, what, value in lines:
            share = f"{100 * (value - worth.onehot) / room:.1f}%" if room > 0 else "–"
            label = tag("th", title, tag("span", what, class_="quiet below"), scope="row")
            rows.append(tag("tr", label, tag("td", f"{value:.4g}".replace("-", "−")), tag("td", share)))
        head = tag(
            "tr", *(tag("th", title, scope="col") for title in ("targets", "value V", "of the way to the bound"))
        )
        notes = [f"Regret, bound minus designer: {worth.bound - worth.designer:.4g}, over {worth.tokens:,} tokens. "]
        notes.append("V is how fast the feedback loss falls along a step on those targets; its unit is arbitrary. ")
        if worth.agreement is not None:
            notes.append(
                f"Two halves of the feedback agree on token values with r = {worth.agreement:.2f}; the bound chases the "
                "noise in them too, so that no honest designer reaches it. "
            )
        if worth.correlation is not None:
            what = "values" if isinstance(self.designer, Field) else "scores"
            notes.append(f"The designer's own {what} go with the exact values at r = {worth.correlation:.2f}. ")
        if self.weighs:
            notes.append("This arm weights whole tokens, which the bound (on soft targets) does not limit. ")
        table = tag("table", tag("thead", head), tag("tbody", *rows))
        return joined(tag("div", table, class_="scroll"), tag("p", *notes, class_="note"))

    def piece(self, piece: Piece) -> Markup:
        """One document: its text in colours, and what stands beside its steered tokens."""
        tokenizer = self.materials.tokenizer
        texts = spelled(tokenizer, piece.document.ids)
        tokens = [
            self.token(text, value, weight)
            for text, value, weight in zip(texts, piece.values, piece.weights, strict=True)
        ]
        z = piece.mean / self.scale
        title = tag(
            "p", tag("strong", signed(z), class_="pos-text" if z >= 0 else "neg-text"), " ",
            name(piece.document.source), " ", tag("span", name(piece.document.origin), class_="quiet"), class_="title",
        )  # fmt: skip
        beside: Markup | str = ""
        if piece.steered:
            many = f"the {len(piece.steered)} tokens" if len(piece.steered) > 1 else "the token"
            listed = [self.steered(token, texts) for token in piece.steered]
            summary = tag("summary", f"What was put beside {many} steered most")
            beside = tag("details", summary, tag("div", *listed, class_="cards"))
        return tag("div", title, tag("div", *tokens, class_="text", dir="auto"), beside, class_="doc")

    def token(self, text: str, value: float | None, weight: float | None) -> Markup:
        """One token; a line break is shown where there is one."""
        shown = text.replace("\n", "↵\n")
        if value is None:
            return tag("span", shown, class_="q")
        z = value / self.scale
        level = min(LEVELS, math.floor(abs(z) / CLIP * LEVELS + 0.5))
        title = f"z {signed(z)}"
        if self.weighs and weight is not None:
            title += f", weight {weight:.2f}"
        shade = f"t {'p' if z > 0 else 'm'}{level}" if level else "t"
        return tag("span", shown, class_=shade, title=title)

    def steered(self, token: Steered, texts: Sequence[str]) -> Markup:
        """The candidates of one token as a small table."""
        tokenizer = self.materials.tokenizer
        before = "".join(texts[max(0, token.at - 12) : token.at])[-28:]
        rows = []
        for index, (found, p, q, s) in enumerate(zip(token.ids, token.p, token.q, token.s, strict=True)):
            label = visible(tokenizer.decode([found]))
            cell = tag(
                "th", tag("bdi", label), tag("span", "true", class_="quiet said") if not index else "", scope="row"
            )
            z = s / self.scale
            side = "pos-text" if z >= 0 else "neg-text"
            rows.append(tag("tr", cell, tag("td", share(p)), tag("td", share(q)), tag("td", signed(z), class_=side)))
        head = tag("tr", *(tag("th", title, scope="col") for title in ("candidate", "p", "q", "s")))
        caption = tag("caption", "…", tag("bdi", before), tag("mark", tag("bdi", visible(texts[token.at].strip(" ")))),
                      tag("span", f"gate {token.gate:.2f}", class_="gate"))  # fmt: skip
        return tag("table", caption, tag("thead", head), tag("tbody", *rows), class_="card")

    def provenance(self) -> Markup:
        """What was looked at, and how."""
        recipe = self.recipe
        facts = (
            ("run", name(self.folder)),
            ("arm", joined(recipe.arm, ": ", ARMS[recipe.arm])),
            ("direction", f"{recipe.value.alignment}, heard once from {recipe.data.feedback.batches} feedback batches of "
             f"{recipe.data.feedback.batch_size}, AdamW's moments refilled at learning rate 0"),
            ("stream", "the run's sources and weights, in an order of their own"),
            ("columns", f"p: the learner's probability; q: the target; s: the value z of that candidate; gate: mass taken "
             f"from the true token. Each token has {recipe.designer.candidates} candidates in the bound."),
        )  # fmt: skip
        return tag("dl", *(joined(tag("dt", key), tag("dd", said)) for key, said in facts), class_="facts")


def section(title: str, *parts: object) -> Markup:
    """A part of the page under its heading."""
    return tag("section", tag("h2", title), *parts)


def signed(value: float) -> str:
    """With its sign, and a minus that is as wide as a plus."""
    return f"{value:+.2f}".replace("-", "−")


def share(value: float) -> str:
    """A probability in three digits."""
    return "<.001" if 0 < value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"


def visible(text: str, most: int = 32) -> str:
    """A token by itself, with its blanks to be seen."""
    text = printable(text).replace("\n", "↵").replace("\t", "⇥")
    text = "␣" * (len(text) - len(text.lstrip(" "))) + text.lstrip(" ")
    return (text if len(text) <= most else text[: most - 1] + "…") or "∅"


def _shades() -> str:
    """Backgrounds of blue (wanted) and orange (unwanted), told apart by every common kind of colour vision."""
    rules = []
    for level in range(1, LEVELS + 1):
        strength = round(0.62 * level / LEVELS, 2)
        rules.append(
            f".p{level}{{background:rgb(var(--up) / {strength})}}.m{level}{{background:rgb(var(--down) / {strength})}}"
        )
    return "\n".join(rules)


STYLE = """
:root { --up: 40 130 225; --down: 240 125 20; --up-ink: #0b5cad; --down-ink: #a34600; }
@media screen and (prefers-color-scheme: dark) {
  :root { --up: 50 135 235; --down: 225 105 10; --up-ink: #7db9ff; --down-ink: #ffa45c; }
}
.beside-title { color: var(--soft); max-width: 52em; }
.key { background: var(--wash); border-radius: 10px; padding: 16px 18px; }
.chips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 8px 28px;
  font-size: .93rem; }
.chips > span { display: block; }
.chips b { font: 600 .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; padding: 2px 6px; border-radius: 4px; }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 10px; margin-top: 14px; font-size: .86rem; }
.strip { display: inline-flex; border-radius: 4px; overflow: hidden; }
.strip i { width: 15px; height: 14px; }
.doc { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px;
  margin: 0 0 14px; min-width: 0; }
.doc .title { margin: 0 0 8px; font-size: .92rem; overflow-wrap: anywhere; }
.doc .title strong { font-variant-numeric: tabular-nums; margin-right: .3em; }
.text { font: .95rem/2 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.t { border-radius: 3px; padding: 3px 0; }
.t:empty { display: inline-block; width: .45em; height: 1.1em; vertical-align: -2px; padding: 0; }
.q { color: var(--soft); opacity: .85; }
.pos-text { color: var(--up-ink); }
.neg-text { color: var(--down-ink); }
.bar i.pos { background: rgb(var(--up)); }
.bar i.neg { background: rgb(var(--down)); }
.doc details { margin-top: 6px; font-size: .9rem; }
.doc summary { font-weight: 500; color: var(--soft); }
.between > summary { margin-bottom: 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); gap: 18px 26px;
  padding-top: 8px; }
.card { font-size: .84rem; align-self: start; table-layout: fixed; }
.card caption { color: var(--soft); overflow-wrap: anywhere; }
.card mark { background: none; color: var(--ink); font-weight: 700; border-bottom: 2px solid var(--accent); }
.card .gate { float: right; margin-left: .8em; }
.card th, .card td { padding-top: 3px; padding-bottom: 3px; padding-left: 8px; }
.card th:first-child { width: 43%; padding-left: 0; overflow-wrap: anywhere;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.card thead th:first-child { font-family: inherit; }
.card .said { display: inline; margin-left: .5em; font-family: system-ui, sans-serif; }
""" + _shades()
