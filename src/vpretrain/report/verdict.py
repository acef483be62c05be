"""The verdict in one sentence, strictly as the paired statistics of the leading metric allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from vpretrain.report.figures import UNITS
from vpretrain.report.files import Paired
from vpretrain.report.folders import Section
from vpretrain.report.formatting import decimals_for, fixed, listed, many, p_phrase, signed
from vpretrain.studies.statistics import NOT_BY_ITEMS, decided_by_seeds_alone
from vpretrain.system.html import Markup, joined, name, tag

_SOLVED = {"pass@1": "held-out problems solved", "accuracy": "held-out answers right"}
_OUTCOME = {
    "better": "Your examples helped: ",
    "worse": "Your examples did harm: ",
    "undecided": "Whether your examples helped is not decided: ",
}
_LIKE_A_CONTROL = "Steering helped, and whether it is your examples that did is not decided: "


def headline(section: Section) -> Markup:
    """Returns whether the examples helped: in the most tangible metric first, then the loss.

    Empty if no arm was steered by examples, nothing is paired, or the results do not describe the
    arms. The steered arm is the first after the baseline, unless that is a control; an arm that is
    compared with another steered one says nothing of the examples. Its gain is attributed to them
    only if it also beats every control.
    """
    steered = section.arms[1] if len(section.arms) > 1 else ""
    pairs = section.paired.get(steered, {})
    controls = [arm for arm in section.arms[1:] if section.roles.get(arm) == "control"]
    if section.roles.get(section.arms[0]) != "baseline" or steered in controls or not pairs:
        return joined()
    kinds = {metric: metric.rpartition("/")[2] for metric in section.metrics if metric in pairs}
    first = next((metric for metric in kinds if kinds[metric] in _SOLVED), None)
    first = first or next(iter(kinds), None)
    if first is None:
        return joined()
    steered_verdict = pairs[first].verdict
    equals = _not_beaten(section, steered, controls, first) if steered_verdict == "better" else []
    outcome = _LIKE_A_CONTROL if equals else _OUTCOME[steered_verdict]
    loss = next((metric for metric in kinds if kinds[metric] == "nll" and metric != first), None)
    before, after = "", ""
    if kinds[first] not in _SOLVED:
        before = "held-out loss " if kinds[first] == "nll" else _named(kinds[first])
        after = {True: " (higher is better)", False: " (lower is better)", None: ""}[
            section.metrics[first]
        ]
    text = joined(outcome, before, _three(section, first, steered), after, ". ")
    if loss is not None:
        text = joined(text, "Held-out loss: ", _three(section, loss, steered), ". ")
    if steered_verdict == "better":
        text = joined(text, _beside_controls(controls, equals))
    return text


def _not_beaten(section: Section, steered: str, controls: Sequence[str], metric: str) -> list[str]:
    """Returns the controls that the steered arm does not beat, over seeds and held-out items."""
    pairs = section.control_pairs.get(steered, {})
    verdicts = {arm: each[metric].verdict for arm, each in pairs.items() if metric in each}
    # Verdicts on the control against the steered arm: "worse" is the desired outcome.
    return [arm for arm in controls if verdicts.get(arm) != "worse"]


def _beside_controls(controls: Sequence[str], equals: Sequence[str]) -> Markup:
    if not controls:
        control = tag("code", "fixed_random_direction")
        return joined(
            "No control was run: ", control, " among the arms shows what another direction gains. "
        )
    if not equals:
        whom = "the control " if len(controls) == 1 else "the controls "
        return joined("It is ahead of ", whom, _names(controls), " too. ")
    whom = "the control " if len(equals) == 1 else "the controls "
    return joined("It is not clearly ahead of ", whom, _names(equals), ". ")


def _named(kind: str) -> str:
    return f"held-out {UNITS[kind]} " if kind in UNITS else ""


def _three(section: Section, metric: str, steered: str) -> Markup:
    """Returns the metric with the examples, without them, and before training."""
    means = [section.summaries[arm][metric].mean for arm in (steered, section.arms[0])]
    before = section.step0.get(metric)
    values = [*means, *([before.value] if before else [])]
    solved = _SOLVED.get(metric.rpartition("/")[2])
    if solved is None:
        least = decimals_for([max(map(abs, values)) / 100])
        each = [[fixed(value, places) for value in values] for places in range(least, 7)]
        # Means that differ look different, if six decimals show it.
        shown = next((texts for texts in each if len({*texts}) == len({*values})), each[-1])
        kind = metric.rpartition("/")[2]
        what = "" if kind in UNITS else joined(" in ", name(metric))
        unit = " nats per token" if kind == "nll" else ""
    else:
        whole = [f"{100 * value:.0f}%" for value in values]
        distinct = len(set(whole)) == len(set(values))
        shown = whole if distinct else [f"{100 * value:.1f}%" for value in values]
        what, unit = f" of {solved}", ""
    ends = ["", " without them", " before"]
    parts = [f"{value}{end}" for value, end in zip(shown, ends[: len(shown)], strict=True)]
    return joined(parts[0], unit, what, ", ", ", ".join(parts[1:]))


def verdict(section: Section) -> Markup:
    """Returns one sentence; it says "better" or "worse" only of arms that compare.json calls so."""
    if (reason := _without_pairs(section)) is not None:
        return reason
    arms, lead, baseline = section.arms, section.lead or "", section.arms[0]
    judged = {arm: section.paired[arm][lead] for arm in arms if lead in section.paired.get(arm, {})}
    where = joined("In ", name(lead), f" over {many(len(section.seeds), 'seed')}, ")
    clauses: list[Markup] = []
    for kind in ("better", "worse", "undecided"):
        group = [arm for arm in judged if judged[arm].verdict == kind]
        if kind == "undecided" and not clauses:
            return joined(where, _undecided(judged, baseline))
        if group:
            relation = "undecided against" if kind == "undecided" else tag("em", f"{kind} than")
            figures = "" if kind == "undecided" else _how(section, group)
            clauses.append(
                joined(_names(group), _is(group), relation, " ", name(baseline), figures)
            )
    return joined(where, *_interleaved(clauses, listed(map(str, clauses), last="while")), ".")


def _without_pairs(section: Section) -> Markup | None:
    """Returns why there is no verdict; None if there is one."""
    arms, lead, baseline = section.arms, section.lead, section.arms[0]
    seeds = len(section.seeds)
    if section.kind == "unfinished":
        so_far = f"{len(section.runs)} runs of {many(len(arms), 'arm')} and {many(seeds, 'seed')}"
        return joined(
            f"This comparison is not finished ({so_far} so far), and there is no verdict on what "
            "is not finished."
        )
    if section.kind == "runs":
        some = "Runs by themselves give" if len(section.runs) > 1 else "One run gives"
        command = tag("code", "vpretrain compare")
        return joined(f"{some} no verdict: for one, ", command, " pairs arms over seeds.")
    if lead is None or len(arms) < 2:
        return joined("Only ", name(baseline), " was run: there is nothing to tell it apart from.")
    if seeds < 2:
        return joined(
            "One seed gives no interval: nothing here can be called better or worse than ",
            name(baseline),
            " in ",
            name(lead),
            "; compare again with --seeds 3 or more.",
        )
    return None


def _undecided(judged: dict[str, Paired], baseline: str) -> Markup:
    """Returns a clause for when no arm is better or worse: how close they came, and what it
    means.
    """
    corrected = [pair.p_holm for pair in judged.values() if pair.p_holm is not None]
    which = "" if len(judged) == 1 else "smallest "
    smallest = f" ({which}{p_phrase(min(corrected))}, Holm)" if corrected else ""
    who, verb = (_names(list(judged)), "is not") if len(judged) == 1 else ("no arm", "is")
    by_seeds_alone = any(
        decided_by_seeds_alone(pair.verdict, pair.p_holm, items=pair.items is not None)
        for pair in judged.values()
    )
    why = "these seeds show neither a gain nor that there is none"
    if by_seeds_alone:
        why = NOT_BY_ITEMS
    return joined(who, f" {verb} told apart from ", name(baseline), smallest, f": {why}.")


def against_step0(section: Section) -> Markup | None:
    """Returns where each arm's mean of the leading metric ended relative to step 0.

    None if that is unknown.
    """
    lead = section.lead
    if lead is None or lead not in section.step0 or section.kind == "runs":
        return None
    start, higher = section.step0[lead].value, section.metrics[lead]
    if higher is None:
        return None
    summaries = section.summaries.items()
    means = {arm: scores[lead].mean for arm, scores in summaries if lead in scores}
    ahead = [arm for arm, mean in means.items() if mean != start and (mean > start) == higher]
    behind = [arm for arm, mean in means.items() if mean != start and arm not in ahead]
    decimals = _decimals(section, lead)
    ends = [
        joined(_names(arms), " ended ", side)
        for arms, side in ((ahead, "ahead of it"), (behind, "behind it"))
        if arms
    ]
    sides = joined(*_interleaved(ends, listed(ends))) or "all ended where it is"
    checkpoint = f"Against the untouched checkpoint (step 0, {fixed(start, decimals)}), "
    return joined(checkpoint, sides, ". This is said of means, without a test.")


def _how(section: Section, arms: Sequence[str]) -> str:
    """Returns the statistics behind a clause: all for one arm, the largest p for several."""
    lead = section.lead or ""
    pairs = [section.paired[arm][lead] for arm in arms]
    largest = max((pair.p_holm for pair in pairs if pair.p_holm is not None), default=None)
    if largest is None:
        return ""
    if len(pairs) > 1 or pairs[0].ci95 is None:
        bound = largest if largest < 0.001 else math.ceil(1000 * largest - 1e-9) / 1000
        return f" (each {p_phrase(bound).replace('=', '≤')}, Holm)"
    low_end, high_end = pairs[0].ci95
    decimals = decimals_for([(high_end - low_end) / 20])
    low, high = signed(low_end, decimals), signed(high_end, decimals)
    size, p = fixed(abs(pairs[0].difference), decimals), p_phrase(largest)
    return f" by {size} (difference between {low} and {high} at 95%; {p}, Holm)"


def _decimals(section: Section, metric: str) -> int:
    summaries = section.summaries.values()
    return decimals_for(scores[metric].std for scores in summaries if metric in scores)


def _names(arms: Sequence[str]) -> Markup:
    return joined(*_interleaved(map(name, arms), listed(arms)))


def _interleaved(parts: Iterable[Markup], ends: Iterable[str]) -> Iterator[str]:
    for part, end in zip(parts, ends, strict=True):
        yield from (part, end)


def _is(arms: Sequence[str]) -> str:
    return " is " if len(arms) == 1 else " are "
