"""The report page: the finding first, then its evidence.

One file without scripts or network access.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vpretrain.report import tables
from vpretrain.report.chart import COLOURS, Figure, Panel
from vpretrain.report.drawing import panel, swatch
from vpretrain.report.folders import Section
from vpretrain.report.formatting import many
from vpretrain.report.pictures import pictures
from vpretrain.report.verdict import against_step0, headline, verdict
from vpretrain.system.html import Markup, document, joined, name, tag

_DARK = ("#a3abb8", "#62b3f5", "#ff9457", "#3ecf9f", "#e28fc8", "#e3b341", "#a9d3f7")


def page(sections: Sequence[Section], figures: Sequence[Mapping[str, Sequence[Figure]]]) -> str:
    """Returns the whole page.

    Args:
        sections: one or more, of one recipe.
        figures: of each section (see :func:`vpretrain.report.figures.figures`).
    """
    description = str(sections[0].recipe.get("description") or "Results")
    several = len(sections) > 1
    bodies = [
        _section(section, charts, f"s{number}", several)
        for number, (section, charts) in enumerate(zip(sections, figures, strict=True), 1)
    ]
    heading = tag("h1", description[:1].upper() + description[1:])
    title = tag("header", tag("p", "vpretrain report", class_="eyebrow"), heading)
    return document(f"{description} · vpretrain", title, *bodies, style=_colours())


def _section(
    section: Section, figures: Mapping[str, Sequence[Figure]], anchor: str, several: bool
) -> Markup:
    level = "h3" if several else "h2"
    shown = tables.runs(section) if section.kind == "runs" else tables.results(section)
    parts = [
        (
            "Results",
            joined(shown, tables.reading(section), tables.meanings(section), tables.used(section)),
        )
    ]
    if figures["curves"]:
        parts.append(("Curves", joined(*map(_figure, figures["curves"]))))
    if section.kind == "comparison":
        parts.append(
            (f"{section.unit.capitalize()} until the baseline's score", tables.efficiency(section))
        )
    if figures["steering"]:
        drawn = [*map(_figure, figures["steering"])]
        if figures["limits"]:
            summary = tag("summary", "Bound and regret: how much more targets could have gained")
            drawn.append(tag("details", summary, *map(_figure, figures["limits"])))
        parts.append(("Steering over time", joined(*drawn)))
    if (cost := tables.costs(section)) is not None:
        parts.append(("Cost", joined(cost, *map(_figure, figures["cost"]))))
    if figures["tradeoffs"]:
        parts.append(("Trade-offs", joined(*map(_figure, figures["tradeoffs"]))))
    if (drawn_pictures := pictures(section.folders)) is not None:
        parts.append(("Pictures", drawn_pictures))
    text = tag("pre", tag("code", section.recipe_text))
    recipe = tag("details", tag("summary", "Recipe, every value"), text)
    parts.append(("How it was made", joined(tables.provenance(section), recipe)))

    links = [tag("a", title, href=f"#{anchor}-{place}") for place, (title, _) in enumerate(parts)]
    content = [
        tag("section", tag(level, title), inner, id=f"{anchor}-{place}")
        for place, (title, inner) in enumerate(parts)
    ]
    beside = against_step0(section)
    notes = [tag("li", note) for note in section.notes]
    return tag(
        "article",
        tag("h2", str(section.folders[0]), class_="folder") if several else "",
        tag("p", _facts(section), class_="facts-line"),
        tag("p", headline(section), verdict(section), class_="verdict"),
        tag("p", beside, class_="beside") if beside else "",
        tag("ul", *notes, class_="notes") if notes else "",
        tag("nav", *links, aria_label="Parts of this report"),
        *content,
    )


def _facts(section: Section) -> Markup:
    """Returns modality, size and budget in one line."""
    facts = [section.modality, many(len(section.arms), "arm"), many(len(section.seeds), "seed")]
    if section.match and section.budget:
        facts.append(f"{section.budget:,g} {section.match} each")
    return joined(*(tag("span", fact) for fact in facts))


def _figure(figure: Figure) -> Markup:
    arms = (tag("span", swatch(style), name(arm)) for arm, style in figure.arms)
    legend = tag("p", *arms, class_="legend")
    drawn = (_panel(chart, figure.wide) for chart in figure.panels)
    panels = tag("div", *drawn, class_="panels wide" if figure.wide else "panels")
    title = joined(tag("strong", figure.title), " ") if figure.title else ""
    caption = tag("figcaption", title, figure.caption)
    return tag("figure", caption, legend, panels)


def _panel(chart: Panel, large: bool) -> Markup:
    description = tag("p", chart.description) if chart.description else ""
    return tag("div", panel(chart, large=large), description, class_="panel")


def _colours() -> str:
    """Returns CSS variables with a colour for every arm, in light and dark mode."""
    slots = range(len(COLOURS))
    light = "".join(f"--arm-{slot}:{COLOURS[slot]};" for slot in slots)
    dark = "".join(f"--arm-{slot}:{_DARK[slot]};" for slot in slots)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
