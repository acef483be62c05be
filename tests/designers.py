"""Overrides of designers' keys."""


def of_every_kind(arms, **values):
    """The keys in the section of every kind that has them."""
    return [
        f"designers.{kind}.{key}={value}"
        for kind, section in arms.kinds.items()
        for key, value in values.items()
        if key in section.model_fields
    ]


def arms_of(arms, learner_kind=None):
    """The arms that train in one stage (vision: those that a kind of learner has)."""
    return sorted(
        name
        for name, arm in arms.all.items()
        if not arm.after
        and (
            learner_kind is None
            or arm.designer is None
            or learner_kind in arms.kinds[arm.designer].learner_kinds
        )
    )
