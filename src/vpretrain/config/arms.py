"""Arms: what a run can steer with. A designer is declared once, with the keys that it reads; the
recipe's section ``designer`` is one of them.

A modality has one :class:`Arms`, which declarations fill::

    @ARMS.declare("token_weights", "one-hot targets, tokens weighted by their exact value")
    class TokenWeights(LanguageArm):
        tilt: NonNegativeFloat = 0.4

        def build(self, site: Site) -> Designer:
            ...

An *arm*, as ``arm=`` and ``--arms`` name it, is a designer and a control of its feedback; either
may be left to the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import ValidationError, create_model

from vpretrain.config.kinds import KindChoice, Kinds, KindSection, KindT
from vpretrain.config.problems import Marks, explain, nearest
from vpretrain.config.section import Section
from vpretrain.system.errors import UserError, user_error

Control = Literal["none", "random", "fixed_direction", "reversed", "shuffled"]
"""What the designer is given in the place of the feedback set: itself, a fresh random direction at
every batch, one random direction for the whole run, its opposite, or the right inputs with the
wrong labels."""
TrainsOn = Literal["stream", "feedback"]


class DesignerSection(KindSection):
    """The keys of one kind of designer, and what is known of that kind before one is built."""

    uses_feedback: ClassVar[bool] = True
    trains_on: ClassVar[TrainsOn] = "stream"


class FeedbackControl(Section):
    """The section ``feedback``: what the designer is given of the feedback set."""

    control: Control = "none"
    """``random``, ``fixed_direction`` and ``shuffled`` put noise in its place: what steering is
    worth without what the feedback says; ``reversed`` steers away from it."""


@dataclass(frozen=True)
class Arm:
    """What the name of an arm stands for.

    Args:
        description: a sentence; that of a control begins with the word, and reports compare the
            steered arm with it.
        designer: a kind; None: the recipe's ``designer``.
        control: None: the recipe's ``feedback.control``.
        trains_on: whether the learner's data are those of the stream.
        after: stages after the stream, which the modality knows by name.
    """

    description: str
    designer: str | None = None
    control: Control | None = None
    trains_on: TrainsOn = "stream"
    after: tuple[str, ...] = ()

    @property
    def is_control(self) -> bool:
        """Whether reports compare the steered arm with it."""
        return describes_control(self.description)


def describes_control(description: str) -> bool:
    """Whether an arm is a control: its description begins with the word."""
    return description.startswith("control")


CONTROLS: Mapping[str, Arm] = {
    "random_feedback": Arm(
        "control: the recipe's designer is given a fresh random direction at every feedback batch",
        control="random",
    ),
    "fixed_random_direction": Arm(
        "control: the recipe's designer is given one random direction for the whole run",
        control="fixed_direction",
    ),
    "reversed_feedback": Arm(
        "control: the recipe's designer is given the feedback with the opposite sign",
        control="reversed",
    ),
    "shuffled_feedback": Arm(
        "control: the recipe's designer is given the feedback set with the labels of other items",
        control="shuffled",
    ),
}
"""The same in every modality."""

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
    """The designers of a modality, by kind, and the arms that are made of them.

    Args:
        base: what each section is derived from.
        baseline: the kind without steering.
        default: the kind of a recipe that names none.
        controls: the arms that replace the feedback.
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
        """Every arm by name: the baseline, the other designers, and what is made of them."""
        kinds = {self.baseline: self.kinds[self.baseline], **self.kinds}
        own = {
            kind: Arm(section.description, designer=kind, trains_on=section.trains_on)
            for kind, section in kinds.items()
        }
        return own | self.others

    def named(self, name: str) -> Arm:
        """What the name of an arm stands for.

        Raises:
            UserError: there is no such arm.
        """
        if name not in self.all:
            message = f"there is no such arm{nearest(name, self.all)}"
            raise user_error("arm", message, value=name, accepted=", ".join(self.all))
        return self.all[name]

    @property
    def descriptions(self) -> dict[str, str]:
        return {name: arm.description for name, arm in self.all.items()}

    @property
    def direct(self) -> frozenset[str]:
        """Arms that do not train on the stream."""
        return frozenset(name for name, arm in self.all.items() if arm.trains_on != "stream")

    def section_of(self, recipe: Steered[SectionT]) -> SectionT:
        """The designer of the recipe's arm: its section of ``designers``, completed by the keys
        that it shares with ``designer``.

        Raises:
            UserError: there is no such arm.
        """
        return self.section(recipe, self.named(recipe.arm).designer or recipe.designer.kind)

    def keys_of(self, recipe: Steered[SectionT], section: type[KindT]) -> KindT:
        """The keys that a declared designer has in the recipe."""
        keys = self.section(recipe, section.model_fields["kind"].default)
        assert isinstance(keys, section)
        return keys

    def section(self, recipe: Steered[SectionT], kind: str) -> SectionT:
        """The keys that a designer of this kind has in the recipe.

        Raises:
            UserError: its own keys and those that it shares do not go together.
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
        """What the recipe's arm puts in the place of the feedback.

        Raises:
            UserError: there is no such arm.
        """
        return self.named(recipe.arm).control or recipe.feedback.control

    def switch(self, data: dict[str, Any], layer: Mapping[str, Any], marks: Marks) -> None:
        """Makes ``designer`` the section of the kind that a layer over ``data`` names.

        A layer (a file over what it extends; overrides over the file) names it by
        ``designer.kind``, or by an ``arm`` with keys of its own. What stood in ``designer`` goes to
        ``designers``, so that every other kind keeps the keys that it has; what stood there of the
        new kind, and the keys that both kinds have, make the new section.

        Args:
            data: a recipe before it is checked; changed in place.
            layer: keys that are to be written over it.
            marks: where each key was given; changed in place.
        """
        section, own, arm = data.get("designer"), layer.get("designer"), layer.get("arm")
        kind = own.get("kind") if isinstance(own, dict) else None
        if kind is None and arm in self.kinds and self._keys(arm):
            kind = arm
        if kind not in self.kinds or not isinstance(section, dict):
            return
        others = data.get("designers") or {}
        if kind == section.get("kind", self.default) or not isinstance(others, dict):
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

    def complete(self, data: dict[str, Any]) -> None:
        """Names the kind in ``designer`` (where it is missing: the arm's, or the default), and
        moves there what ``designers`` has of that kind."""
        section, others = data.setdefault("designer", {}), data.get("designers")
        if not isinstance(section, dict):
            return
        arm = data.get("arm")
        own = arm in self.kinds and self._keys(str(arm))
        kind = section.setdefault("kind", arm if own else self.default)
        if isinstance(others, dict) and isinstance(others.get(kind), dict):
            data["designer"] = {**others.pop(kind), **section}

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
    """Each section under the name of its kind, or left out."""
    fields: dict[str, Any] = {
        section.model_fields["kind"].default: (section | None, None) for section in sections
    }
    return create_model("Designers", __base__=Section, **fields)
