"""Arms: the ways in which a run can steer.

A designer kind is declared once, with its keys; the recipe's section ``designer`` is one of these
kinds.

A modality has one :class:`Arms`, which declarations fill::

    @ARMS.declare("token_weights", "one-hot targets, tokens weighted by their exact value")
    class TokenWeights(LanguageArm):
        tilt: NonNegativeFloat = 0.4

        def build(self, site: Site) -> Designer:
            ...

An *arm*, as named by ``arm=`` and ``--arms``, is a designer and a control of its feedback; either
may be left to the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import ValidationError, create_model

from vpretrain.config.kinds import KindChoice, Kinds, KindSection, KindT
from vpretrain.config.problems import Marks, explain, given_at, nearest
from vpretrain.config.section import Section
from vpretrain.system.errors import UserError, user_error

Control = Literal["none", "random", "fixed_direction", "reversed", "shuffled"]
"""What replaces the feedback set: nothing (``none``), a new random direction for every batch, one
random direction for the whole run, its negated gradient, or the right inputs with the wrong labels.
"""
TrainsOn = Literal["stream", "feedback"]
Role = Literal["baseline", "treatment", "control"]
"""Part of an arm in a comparison: plain training; what may help; or what shows how much of a gain
is not owed to the feedback.
"""


class DesignerSection(KindSection):
    """The keys of one kind of designer, and its static properties."""

    uses_feedback: ClassVar[bool] = True
    trains_on: ClassVar[TrainsOn] = "stream"
    role: ClassVar[Role] = "treatment"


class FeedbackControl(Section):
    """The section ``feedback``: what the designer gets from the feedback set."""

    control: Control = "none"
    """``random``, ``fixed_direction`` and ``shuffled`` replace the feedback by noise, which shows
    what steering gains without its information; ``reversed`` steers away from it.
    """


@dataclass(frozen=True)
class Arm:
    """The definition of a named arm.

    Args:
        description: one sentence.
        designer: a kind; None: the recipe's ``designer``.
        control: None: the recipe's ``feedback.control``.
        trains_on: the learner's training data: the stream or the feedback set.
        after: names of the modality's stages that follow the stream.
        role: in a comparison; reports compare the first treatment with every control.
    """

    description: str
    designer: str | None = None
    control: Control | None = None
    trains_on: TrainsOn = "stream"
    after: tuple[str, ...] = ()
    role: Role = "treatment"


CONTROLS: Mapping[str, Arm] = {
    "random_feedback": Arm(
        "control: the recipe's designer is given a fresh random direction at every feedback batch",
        control="random",
        role="control",
    ),
    "fixed_random_direction": Arm(
        "control: the recipe's designer is given one random direction for the whole run",
        control="fixed_direction",
        role="control",
    ),
    "reversed_feedback": Arm(
        "control: the recipe's designer is given the feedback with the opposite sign",
        control="reversed",
        role="control",
    ),
    "shuffled_feedback": Arm(
        "control: the recipe's designer is given the feedback set with the labels of other items",
        control="shuffled",
        role="control",
    ),
}
"""Control arms, common to all modalities."""

SectionT = TypeVar("SectionT", bound=DesignerSection)
ReadT = TypeVar("ReadT", bound=DesignerSection, covariant=True)


class Steered(Protocol[ReadT]):
    """A recipe that names an arm."""

    @property
    def arm(self) -> str: ...
    @property
    def designer(self) -> ReadT: ...
    @property
    def designers(self) -> Mapping[str, ReadT]: ...
    @property
    def feedback(self) -> FeedbackControl: ...


class Arms(Kinds[SectionT]):
    """The designers of a modality, by kind, and the arms built from them.

    Args:
        base: base class of the sections.
        baseline: the kind without steering.
        default: the kind of a recipe that names none.
        controls: names of the arms that replace the feedback.
    """

    def __init__(
        self,
        base: type[SectionT],
        *,
        baseline: str,
        default: str,
        controls: Iterable[str] = tuple(CONTROLS),
    ) -> None:
        super().__init__()
        self.base, self.baseline, self.default = base, baseline, default
        self.others: dict[str, Arm] = {name: CONTROLS[name] for name in controls}

    @property
    def all(self) -> dict[str, Arm]:
        """Every arm by name: the baseline, the other designers, then arms built from them."""
        kinds = {self.baseline: self.kinds[self.baseline], **self.kinds}
        own = {
            kind: Arm(
                section.description,
                designer=kind,
                trains_on=section.trains_on,
                role="baseline" if kind == self.baseline else section.role,
            )
            for kind, section in kinds.items()
        }
        return own | self.others

    def named(self, name: str) -> Arm:
        """Returns the definition of an arm.

        Raises:
            UserError: there is no such arm.
        """
        if name not in self.all:
            message = f"there is no such arm{nearest(name, self.all)}"
            raise user_error("arm", message, value=name, accepted=", ".join(self.all))
        return self.all[name]

    def section_of(self, recipe: Steered[SectionT]) -> SectionT:
        """Returns the section of the arm's designer.

        Its keys in ``designers`` are completed by keys shared with ``designer``.

        Raises:
            UserError: there is no such arm.
        """
        return self.section(recipe, self.named(recipe.arm).designer or recipe.designer.kind)

    def keys_of(self, recipe: Steered[SectionT], section: type[KindT]) -> KindT:
        """Returns the recipe's keys for a declared designer class."""
        keys = self.section(recipe, section.model_fields["kind"].default)
        assert isinstance(keys, section)
        return keys

    def section(self, recipe: Steered[SectionT], kind: str) -> SectionT:
        """Returns the recipe's keys for a designer of this kind.

        Raises:
            UserError: its own keys and those it shares with ``designer`` are incompatible.
        """
        if recipe.designer.kind == kind:
            return recipe.designer
        keys, own = self._shared(kind, dict(recipe.designer)), recipe.designers.get(kind)
        if own is not None:
            keys |= {name: getattr(own, name) for name in own.model_fields_set}
        try:
            return self.kinds[kind](**keys)
        except ValidationError as error:
            where: Marks = {(): f"designers.{kind}"}
            raise UserError(*explain(error, self.kinds[kind], keys, where)) from None

    def control_of(self, recipe: Steered[SectionT]) -> Control:
        """Returns the feedback control of the recipe's arm.

        Raises:
            UserError: there is no such arm.
        """
        return self.named(recipe.arm).control or recipe.feedback.control

    def switch(self, data: dict[str, Any], layer: Mapping[str, Any], marks: Marks) -> None:
        """Replaces ``designer`` by the section of the kind that a layer over ``data`` names.

        A layer (a file over the one it extends; overrides over the file) names it by
        ``designer.kind``, or by an ``arm`` that has keys of its own. The former keys of
        ``designer`` move to ``designers``, so that every other kind keeps the keys it has. The new
        section consists of the keys that ``designers`` held for the new kind and the keys that both
        kinds share.

        Keys that the layer gives in ``designers`` for the kind that ``designer`` then has take the
        place of the former ones there.

        Args:
            data: a recipe before validation; modified in place.
            layer: keys that will be written over it.
            marks: where each key was given; modified in place.
        """
        self._change_kind(data, layer, marks)
        section, kind, others = data.get("designer"), self.kind_of(data), layer.get("designers")
        given = others.get(kind) if isinstance(others, dict) and isinstance(kind, str) else None
        if isinstance(section, dict) and isinstance(given, dict):
            for key in given:
                section.pop(key, None)

    def _change_kind(self, data: dict[str, Any], layer: Mapping[str, Any], marks: Marks) -> None:
        own, arm = layer.get("designer"), layer.get("arm")
        if arm is not None:
            self._pin(data)
        section, kind = data.get("designer"), own.get("kind") if isinstance(own, dict) else None
        if kind is None and self._has_keys(arm):
            kind = arm
        if not isinstance(kind, str) or kind not in self.kinds or not isinstance(section, dict):
            return
        others = data.get("designers") or {}
        if kind == self.kind_of(data) or not isinstance(others, dict):
            return
        for name in self.kinds:
            if shared := self._shared(name, section):
                others[name] = {**shared, **(others.get(name) or {})}
                for key in shared:
                    marks.setdefault(
                        ("designers", name, key), marks.get(("designer", key), "recipe")
                    )
        new = others.pop(kind, {})
        for key in new:
            marks[("designer", key)] = marks.get(("designers", kind, key), "recipe")
        data["designer"], data["designers"] = {"kind": kind, **new}, others

    def complete(self, data: dict[str, Any], marks: Marks) -> None:
        """Sets ``designer.kind`` if missing, and merges that kind's keys from ``designers``.

        The kind is the arm's, or the default. ``data`` and ``marks`` are modified in place.
        """
        self._pin(data)
        section, others = data["designer"], data.get("designers")
        kind = self.kind_of(data)
        if not isinstance(section, dict) or not isinstance(others, dict):
            return
        if isinstance(kind, str) and isinstance(others.get(kind), dict):
            new = others.pop(kind)
            data["designer"] = {**new, **section}
            for key in new.keys() - section.keys():
                marks[("designer", key)] = given_at(("designers", kind, key), marks)

    def kind_of(self, data: Mapping[str, Any]) -> Any:
        """Returns the kind of a recipe's designer before validation: what its section says, else
        the arm if that has keys of its own, else the default."""
        section, arm = data.get("designer"), data.get("arm")
        given = section.get("kind") if isinstance(section, dict) else None
        if given is not None:
            return given
        return arm if self._has_keys(arm) else self.default

    def _pin(self, data: dict[str, Any]) -> None:
        """Writes the kind into the section, so that it stays when another arm is named."""
        section = data.setdefault("designer", {})
        if isinstance(section, dict) and section.get("kind") is None:
            section["kind"] = self.kind_of(data)

    def _has_keys(self, arm: Any) -> bool:
        return isinstance(arm, str) and arm in self.kinds and bool(self._keys(arm))

    def _keys(self, kind: str) -> set[str]:
        return set(self.kinds[kind].model_fields) - {"kind"}

    def _shared(self, kind: str, section: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key in self._keys(kind)}

    @property
    def by_name(self) -> KindChoice:
        """The annotation of ``designers``: sections by kind."""
        return KindChoice(
            lambda: tuple(self.kinds.values()),
            _by_name,
            lambda read: {kind: section for kind, section in read if section is not None},
        )


def _by_name(*sections: type[KindSection]) -> type[Section]:
    """Returns a section with one optional field for each kind."""
    fields: dict[str, Any] = {
        section.model_fields["kind"].default: (section | None, None) for section in sections
    }
    return create_model("Designers", __base__=Section, **fields)
