"""The page of ``explain``: text coloured by value, with the candidates of steered tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpretrain.language.explain.token_values import (
    SteeredToken,
    TaskValues,
    ValuedDocument,
    by_source,
    spelled,
)
from vpretrain.language.materials import Materials
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS
from vpretrain.language.steering.networks import FieldDesigner
from vpretrain.language.steering.rules import ClosedFormArm, GroupWeights, TokenWeights
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.roles import Designer
from vpretrain.system.html import Markup, joined, name, printable, tag

SHOWN = 6
"""Number of most and of least valuable documents that are unfolded at first."""
LEVELS, CLIP = 6, 3.0
"""Number of shades of a colour, and the standardised value of the strongest shade."""


@dataclass(frozen=True)
class View:
    """The page of one run."""

    recipe: LanguageRecipe
    folder: Path
    materials: Materials
    documents: list[ValuedDocument]
    totals: TaskValues
    designer: Designer
    last: dict[str, Any]

    @property
    def scale(self) -> float:
        """The root mean square of the shown tokens' values, which is the unit of z."""
        values = [value for each in self.documents for value in each.valued]
        return math.sqrt(sum(value * value for value in values) / len(values)) or 1.0

    @property
    def weighs(self) -> bool:
        """Whether the designer only weights true tokens, without soft targets."""
        return isinstance(self.designer, ExactDesigner) and isinstance(
            self.designer.rule, (TokenWeights, GroupWeights)
        )

    def page(self) -> Markup:
        """The whole page: legend, sources, regret, documents, provenance."""
        ranked = sorted(self.documents, key=lambda each: -each.mean)
        ends = min(SHOWN, (len(ranked) + 1) // 2)
        most, rest = ranked[:ends], ranked[ends:]
        at = len(rest) - min(ends, len(rest))
        between, least = rest[:at], rest[at:]
        count = f"The {len(between)} documents" if len(between) > 1 else "The document"
        others = tag(
            "details",
            tag("summary", f"{count} between them"),
            *map(self.document, between),
            class_="between",
        )
        tokens = sum(len(each.valued) for each in self.documents)
        description = self.recipe.description
        regret = "How close the designer comes to the best targets"
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
                tag("p", description[:1].upper() + description[1:], class_="beside-title"),
            ),
            self.legend(),
            section("Value by source", self.sources()),
            tag("section", tag("details", tag("summary", regret), self.regret())),
            section("Most valuable documents", *map(self.document, most)),
            section("Least valuable documents", *map(self.document, least[::-1])) if least else "",
            tag("section", others) if between else "",
            section("How it was made", self.provenance()),
        )

    def legend(self) -> Markup:
        """The legend of the colours, with notes on the arm."""
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
            control = (
                "This arm is a control, and the colours show what it was given, which is not what "
                "the feedback set wants: "
            )
            notes.append(control + ARMS.all[self.recipe.arm].description + ".")
        if self.designer.uses_feedback and self.last.get("steered") == 0:
            notes.append(
                "When the run ended its guard had switched steering off, since it had stopped to "
                "pay: the learner was trained on plain targets then. Shown is what the designer "
                "would ask for."
            )
        return tag(
            "div",
            tag("div", *chips, class_="chips"),
            scale,
            tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else "",
            class_="key",
        )

    def sources(self) -> Markup:
        """The table of sources: mean value, its standard error, and counts."""
        rows = []
        sources = by_source(self.documents)
        means = {
            source: total / len(values) / self.scale
            for source, (total, values, _) in sources.items()
        }
        most = max(abs(mean) for mean in means.values()) or 1.0
        for source in sorted(sources, key=lambda source: -means[source]):
            _, values, documents = sources[source]
            z = [value / self.scale for value in values]
            mean = means[source]
            spread = math.sqrt(
                sum((value - mean) ** 2 for value in z) / max(1, len(z) - 1) / len(z)
            )
            wanted = 100 * sum(value > 0 for value in z) / len(z)
            width = f"width:{100 * abs(mean) / most:.0f}%"
            side = "pos" if mean >= 0 else "neg"
            value = tag(
                "td",
                signed(mean),
                tag("span", f" ± {spread:.3f}", class_="quiet"),
                tag("span", tag("i", class_=side, style=width), class_="bar"),
            )
            figures = (f"{wanted:.0f}%", f"{documents:,}", f"{len(z):,}")
            label = tag("th", name(source), scope="row")
            rows.append(tag("tr", label, value, *(tag("td", figure) for figure in figures)))
        note = (
            "± is the standard error over tokens, as if they were independent; the documents "
            "are a sample."
        )
        titles = ("source", "mean value z", "tokens above 0", "documents", "tokens")
        return joined(
            tag("div", table(titles, rows), class_="scroll"), tag("p", note, class_="note")
        )

    def regret(self) -> Markup:
        """The table of the four tasks: V, and its position between one-hot and the bound."""
        totals = self.totals
        room = totals.bound - totals.onehot
        lines = (
            ("one-hot", "plain next-token targets", totals.onehot),
            ("designer", f"what this run's arm, {self.recipe.arm}, asks for", totals.designer),
            ("closed form", "the recipe's anchored rule on exact values", totals.closed_form),
            (
                "bound",
                "the best there is over these candidates with a gate up to "
                f"{ARMS.keys_of(self.recipe, ClosedFormArm).gate_max:g}",
                totals.bound,
            ),
        )
        rows = []
        for title, meaning, value in lines:
            fraction = f"{100 * (value - totals.onehot) / room:.1f}%" if room > 0 else "–"
            label = tag("th", title, tag("span", meaning, class_="quiet below"), scope="row")
            rows.append(
                tag("tr", label, tag("td", f"{value:.4g}".replace("-", "−")), tag("td", fraction))
            )
        notes = [
            f"Regret, bound minus designer: {totals.bound - totals.designer:.4g}, over "
            f"{totals.tokens:,} tokens. "
        ]
        notes.append(
            "V is how fast the feedback loss falls along a step on those targets; its unit is "
            "arbitrary. "
        )
        if totals.agreement is not None:
            notes.append(
                "Two halves of the feedback agree on token values with r = "
                f"{totals.agreement:.2f}; the bound chases the noise in them too, so that no "
                "honest designer reaches it. "
            )
        if totals.correlation is not None:
            what = "values" if isinstance(self.designer, FieldDesigner) else "scores"
            notes.append(
                f"The designer's own {what} go with the exact values at r = "
                f"{totals.correlation:.2f}. "
            )
        if self.weighs:
            notes.append(
                "This arm weights whole tokens, which the bound (on soft targets) does not limit. "
            )
        titles = ("targets", "value V", "of the way to the bound")
        return joined(
            tag("div", table(titles, rows), class_="scroll"), tag("p", *notes, class_="note")
        )

    def document(self, document: ValuedDocument) -> Markup:
        """One document: its coloured text, and the candidates of its steered tokens."""
        row = document.document
        texts = spelled(self.materials.tokenizer, row.ids)
        tokens = map(self.token, texts, document.values, document.weights)
        z = document.mean / self.scale
        value = tag("strong", signed(z), class_="pos-text" if z >= 0 else "neg-text")
        origin = tag("span", name(row.origin), class_="quiet")
        title = tag("p", value, " ", name(row.source), " ", origin, class_="title")
        beside: Markup | str = ""
        if count := len(document.steered):
            which = f"the {count} tokens" if count > 1 else "the token"
            cards = [self.steered(token, texts) for token in document.steered]
            summary = tag("summary", f"What was put beside {which} steered most")
            beside = tag("details", summary, tag("div", *cards, class_="cards"))
        return tag(
            "div", title, tag("div", *tokens, class_="text", dir="auto"), beside, class_="doc"
        )

    def token(self, text: str, value: float | None, weight: float | None) -> Markup:
        """One token, with visible line breaks."""
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

    def steered(self, token: SteeredToken, texts: Sequence[str]) -> Markup:
        """The table of one token's candidates."""
        tokenizer = self.materials.tokenizer
        before = "".join(texts[max(0, token.at - 12) : token.at])[-28:]
        rows = []
        columns = zip(token.ids, token.p, token.q, token.s, strict=True)
        for index, (candidate, p, q, s) in enumerate(columns):
            true = tag("span", "true", class_="quiet said") if not index else ""
            label = tag("bdi", visible(tokenizer.decode([candidate])))
            z = s / self.scale
            value = tag("td", signed(z), class_="pos-text" if z >= 0 else "neg-text")
            cell = tag("th", label, true, scope="row")
            rows.append(tag("tr", cell, tag("td", fraction(p)), tag("td", fraction(q)), value))
        caption = tag(
            "caption",
            "…",
            tag("bdi", before),
            tag("mark", tag("bdi", visible(texts[token.at].strip(" ")))),
            tag("span", f"gate {token.gate:.2f}", class_="gate"),
        )
        return table(("candidate", "p", "q", "s"), rows, caption, style="card")

    def provenance(self) -> Markup:
        """The run, and how its values were measured."""
        recipe = self.recipe
        count = ARMS.keys_of(recipe, ClosedFormArm).candidates
        facts = (
            ("run", name(self.folder)),
            ("arm", joined(recipe.arm, ": ", ARMS.all[recipe.arm].description)),
            (
                "direction",
                f"{recipe.alignment}, taken once from {recipe.data.feedback.batches} "
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
        lines = (joined(tag("dt", key), tag("dd", text)) for key, text in facts)
        return tag("dl", *lines, class_="facts")


def section(title: str, *parts: object) -> Markup:
    """A section of the page with its heading."""
    return tag("section", tag("h2", title), *parts)


def table(
    titles: Sequence[str],
    rows: Sequence[Markup],
    caption: Markup | str = "",
    style: str | None = None,
) -> Markup:
    """A table with column titles; ``style`` is a class of ``page.css``."""
    head = tag("thead", tag("tr", *(tag("th", title, scope="col") for title in titles)))
    return tag("table", caption, head, tag("tbody", *rows), class_=style)


def signed(value: float) -> str:
    """A number with its sign and two decimals, with a minus as wide as a plus."""
    return f"{value:+.2f}".replace("-", "−")


def fraction(value: float) -> str:
    """A probability with three decimals."""
    return "<.001" if 0 < value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"


def visible(text: str, most: int = 32) -> str:
    """A token's text with visible white space, cut to ``most`` characters."""
    text = printable(text).replace("\n", "↵").replace("\t", "⇥")
    text = "␣" * (len(text) - len(text.lstrip(" "))) + text.lstrip(" ")
    return (text if len(text) <= most else text[: most - 1] + "…") or "∅"
