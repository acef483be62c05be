"""The page of ``explain``: text coloured by value, candidates beside the tokens that were
steered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpretrain.language.explain.token_values import Piece, Steered, Worth, by_source, spelled
from vpretrain.language.materials import Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.networks import FieldDesigner
from vpretrain.language.steering.rules import ClosedFormArm, GroupWeights, TokenWeights
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.roles import Designer
from vpretrain.system.html import Markup, joined, name, printable, tag

SHOWN = 6
"""Documents at either end of the page that are open from the start."""
LEVELS, CLIP = 6, 3.0
"""Shades of a colour, and the standardised value at which it is fullest."""


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
        return isinstance(self.designer, ExactDesigner) and isinstance(
            self.designer.rule, (TokenWeights, GroupWeights)
        )

    def page(self) -> Markup:
        """Legend, sources, regret, documents."""
        ranked = sorted(self.pieces, key=lambda piece: -piece.mean)
        ends = min(SHOWN, (len(ranked) + 1) // 2)
        most, rest = ranked[:ends], ranked[ends:]
        least, between = (
            rest[len(rest) - min(ends, len(rest)) :],
            rest[: len(rest) - min(ends, len(rest))],
        )
        others = ""
        if between:
            title = (
                f"The {len(between)} documents between them"
                if len(between) > 1
                else "The document between them"
            )
            others = tag(
                "details", tag("summary", title), *map(self.piece, between), class_="between"
            )
        tokens = sum(len(piece.valued) for piece in self.pieces)
        facts = (
            "language",
            f"arm {self.recipe.arm}",
            f"{len(ranked)} documents",
            f"{tokens:,} valued tokens",
        )
        return joined(
            tag(
                "header",
                tag("p", "vpretrain explain", class_="eyebrow"),
                tag("h1", "What each token is worth"),
                tag("p", *(tag("span", fact) for fact in facts), class_="facts-line"),
                tag(
                    "p",
                    self.recipe.description[:1].upper() + self.recipe.description[1:],
                    class_="beside-title",
                ),
            ),
            self.legend(),
            section("Value by source", self.sources()),
            tag(
                "section",
                tag(
                    "details",
                    tag("summary", "How close the designer comes to the best targets"),
                    self.regret(),
                ),
            ),
            section("Most valuable documents", *map(self.piece, most)),
            section("Least valuable documents", *map(self.piece, reversed(least))) if least else "",
            tag("section", others) if others else "",
            section("How it was made", self.provenance()),
        )

    def legend(self) -> Markup:
        """What the colours say, in plain words."""
        chips = [
            tag(
                "span",
                tag("b", "more", class_="t p5"),
                " the feedback set wants more of this token: a model that finds "
                "it likelier does better on the verified examples",
            ),
            tag("span", tag("b", "less", class_="t m5"), " it wants less of it"),
            tag(
                "span",
                tag("b", "plain", class_="t"),
                " it hardly matters, mostly since the model is sure of it already",
            ),
            tag(
                "span",
                tag("b", "grey", class_="q"),
                " prompt or first token: never predicted, never valued",
            ),
        ]
        strip = [tag("i", class_=f"m{level}") for level in range(LEVELS, 0, -1)]
        strip += [tag("i", class_=f"p{level}") for level in range(1, LEVELS + 1)]
        scale = tag(
            "div",
            tag("span", "−3"),
            tag("span", *strip, class_="strip", aria_hidden="true"),
            tag("span", "+3"),
            tag(
                "span",
                "value z, in units of the typical size of a token's value on this page",
                class_="quiet",
            ),
            class_="scale",
        )
        notes = []
        if ARMS.control_of(self.recipe) != "none":
            said = (
                "This arm is a control, and the colours show what it was given, which is not what "
                "the feedback set wants: "
            )
            notes.append(said + ARMS.all[self.recipe.arm].description + ".")
        if self.designer.uses_feedback and self.last.get("steered") == 0:
            notes.append(
                "When the run ended its guard had closed the gate, since steering had stopped "
                "to pay: the learner was "
                "trained on plain targets then. Shown is what the designer would ask for."
            )
        return tag(
            "div",
            tag("div", *chips, class_="chips"),
            scale,
            tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else "",
            class_="key",
        )

    def sources(self) -> Markup:
        """Mean value, its standard error and what it rests on, a row a source."""
        rows = []
        found = sorted(
            by_source(self.pieces).items(), key=lambda item: -item[1][0] / len(item[1][1])
        )
        means = {source: total / len(values) / self.scale for source, (total, values, _) in found}
        most = max(abs(mean) for mean in means.values()) or 1.0
        for source, (_, values, documents) in found:
            z = [value / self.scale for value in values]
            mean = means[source]
            spread = math.sqrt(
                sum((value - mean) ** 2 for value in z) / max(1, len(z) - 1) / len(z)
            )
            wanted = 100 * sum(value > 0 for value in z) / len(z)
            width = f"width:{100 * abs(mean) / most:.0f}%"
            side = "pos" if mean >= 0 else "neg"
            rows.append(
                tag(
                    "tr",
                    tag("th", name(source), scope="row"),
                    tag(
                        "td",
                        signed(mean),
                        tag("span", f" ± {spread:.3f}", class_="quiet"),
                        tag("span", tag("i", class_=side, style=width), class_="bar"),
                    ),
                    tag("td", f"{wanted:.0f}%"),
                    tag("td", f"{documents:,}"),
                    tag("td", f"{len(z):,}"),
                )
            )
        head = tag(
            "tr",
            *(
                tag("th", title, scope="col")
                for title in ("source", "mean value z", "tokens above 0", "documents", "tokens")
            ),
        )
        note = (
            "± is the standard error over tokens, as if they were independent; the documents "
            "are a sample."
        )
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
            (
                "bound",
                "the best there is over these candidates with a gate up to "
                f"{ARMS.keys_of(self.recipe, ClosedFormArm).gate_max:g}",
                worth.bound,
            ),
        )
        rows = []
        for title, what, value in lines:
            fraction = f"{100 * (value - worth.onehot) / room:.1f}%" if room > 0 else "–"
            label = tag("th", title, tag("span", what, class_="quiet below"), scope="row")
            rows.append(
                tag("tr", label, tag("td", f"{value:.4g}".replace("-", "−")), tag("td", fraction))
            )
        head = tag(
            "tr",
            *(
                tag("th", title, scope="col")
                for title in ("targets", "value V", "of the way to the bound")
            ),
        )
        notes = [
            f"Regret, bound minus designer: {worth.bound - worth.designer:.4g}, over "
            f"{worth.tokens:,} tokens. "
        ]
        notes.append(
            "V is how fast the feedback loss falls along a step on those targets; its unit is "
            "arbitrary. "
        )
        if worth.agreement is not None:
            notes.append(
                "Two halves of the feedback agree on token values with r = "
                f"{worth.agreement:.2f}; the bound chases the "
                "noise in them too, so that no honest designer reaches it. "
            )
        if worth.correlation is not None:
            what = "values" if isinstance(self.designer, FieldDesigner) else "scores"
            notes.append(
                f"The designer's own {what} go with the exact values at r = "
                f"{worth.correlation:.2f}. "
            )
        if self.weighs:
            notes.append(
                "This arm weights whole tokens, which the bound (on soft targets) does not limit. "
            )
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
            "p",
            tag("strong", signed(z), class_="pos-text" if z >= 0 else "neg-text"),
            " ",
            name(piece.document.source),
            " ",
            tag("span", name(piece.document.origin), class_="quiet"),
            class_="title",
        )
        beside: Markup | str = ""
        if piece.steered:
            many = f"the {len(piece.steered)} tokens" if len(piece.steered) > 1 else "the token"
            listed = [self.steered(token, texts) for token in piece.steered]
            summary = tag("summary", f"What was put beside {many} steered most")
            beside = tag("details", summary, tag("div", *listed, class_="cards"))
        return tag(
            "div", title, tag("div", *tokens, class_="text", dir="auto"), beside, class_="doc"
        )

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
        for index, (found, p, q, s) in enumerate(
            zip(token.ids, token.p, token.q, token.s, strict=True)
        ):
            label = visible(tokenizer.decode([found]))
            cell = tag(
                "th",
                tag("bdi", label),
                tag("span", "true", class_="quiet said") if not index else "",
                scope="row",
            )
            z = s / self.scale
            side = "pos-text" if z >= 0 else "neg-text"
            rows.append(
                tag(
                    "tr",
                    cell,
                    tag("td", fraction(p)),
                    tag("td", fraction(q)),
                    tag("td", signed(z), class_=side),
                )
            )
        head = tag("tr", *(tag("th", title, scope="col") for title in ("candidate", "p", "q", "s")))
        caption = tag(
            "caption",
            "…",
            tag("bdi", before),
            tag("mark", tag("bdi", visible(texts[token.at].strip(" ")))),
            tag("span", f"gate {token.gate:.2f}", class_="gate"),
        )
        return tag("table", caption, tag("thead", head), tag("tbody", *rows), class_="card")

    def provenance(self) -> Markup:
        """What was looked at, and how."""
        recipe = self.recipe
        count = ARMS.keys_of(recipe, ClosedFormArm).candidates
        facts = (
            ("run", name(self.folder)),
            ("arm", joined(recipe.arm, ": ", ARMS.all[recipe.arm].description)),
            (
                "direction",
                f"{recipe.value.alignment}, taken once from {recipe.data.feedback.batches} "
                "feedback batches of "
                f"{recipe.data.feedback.batch_size}, AdamW's moments refilled at learning rate 0",
            ),
            ("stream", "the run's sources and weights, in an order of their own"),
            (
                "columns",
                "p: the learner's probability; q: the target; s: the value z of that "
                "candidate; gate: mass taken "
                f"from the true token. Each token has {count} candidates in the bound.",
            ),
        )
        return tag(
            "dl", *(joined(tag("dt", key), tag("dd", said)) for key, said in facts), class_="facts"
        )


def section(title: str, *parts: object) -> Markup:
    """A part of the page under its heading."""
    return tag("section", tag("h2", title), *parts)


def signed(value: float) -> str:
    """With its sign, and a minus that is as wide as a plus."""
    return f"{value:+.2f}".replace("-", "−")


def fraction(value: float) -> str:
    """A probability in three digits."""
    return "<.001" if 0 < value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"


def visible(text: str, most: int = 32) -> str:
    """A token by itself, with its blanks to be seen."""
    text = printable(text).replace("\n", "↵").replace("\t", "⇥")
    text = "␣" * (len(text) - len(text.lstrip(" "))) + text.lstrip(" ")
    return (text if len(text) <= most else text[: most - 1] + "…") or "∅"
