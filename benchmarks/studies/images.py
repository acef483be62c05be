"""Rendered scenes and real streets."""

from __future__ import annotations

from studies.study import Start, add, arms

V = "arm=ascent"
add(
    "vision-dev",
    "which surface of images, and how far",
    "demo-vision",
    (Start("scenes-0", "demo-vision", None, (100,)),),
    {
        "plain": "arm=plain",
        "ascent, keep 0.6": f"{V} designer.keep_ratio=0.6",
        "ascent, keep 0.4": f"{V} designer.keep_ratio=0.4",
        "ascent, keep 0.25": f"{V} designer.keep_ratio=0.25",
        "random_masks, keep 0.6": "arm=random_masks designer.keep_ratio=0.6",
        "random_feedback, keep 0.6": "arm=random_feedback designer.keep_ratio=0.6",
        "closed_form": "arm=closed_form",
        "closed_form, free": "arm=closed_form designer.temperature=0.25 designer.clip=8 "
        "designer.gate_max=1.0",
        "view_weights": "arm=view_weights",
        "view_weights, tilt 3": "arm=view_weights designer.tilt=3.0",
    },
    "evaluate.split=dev",
)
SCENES = (
    Start("scenes-0", "demo-vision", None, (0, 1)),
    Start("scenes-1", "demo-vision", 1, (2, 3)),
    Start("scenes-2", "demo-vision", 2, (4, 5)),
)
add(
    "vision-scenes",
    "rendered scenes: do masks steered by segmentation beat masks that are not?",
    "demo-vision",
    SCENES,
    arms(
        "plain",
        "ascent",
        "random_masks",
        "constant_mask",
        "fixed_random_direction",
        "shuffled_feedback",
        "direct",
    ),
)
add(
    "vision-others",
    "the other surfaces, each with a random direction of its own",
    "demo-vision",
    SCENES,
    arms("plain", "view_weights", "closed_form", "uniform_smoothing", "random_feedback")
    | {
        "view_weights, one random direction": "arm=fixed_random_direction "
        "designer.kind=view_weights",
        "closed_form, one random direction": "arm=fixed_random_direction designer.kind=closed_form",
        "plain, 330 steps": "arm=plain budget.steps=330",
    },
)
CAMVID = "recipes/vision/camvid.yaml"
add(
    "vision-camvid-dev",
    "how long, how fast on real streets",
    CAMVID,
    (Start("camvid", CAMVID, None, (100,), ("learner.prepare.steps=1500",)),),
    arms("plain", "ascent", "direct")
    | {
        "plain, 1e-3, 200 steps": "arm=plain learner.learning_rate=1e-3 budget.steps=200",
        "ascent, keep 0.4": f"{V} designer.keep_ratio=0.4",
    },
    "evaluate.split=dev",
)
add(
    "vision-camvid-young",
    "the same from a learner that was made in a fifth of the steps",
    CAMVID,
    (Start("camvid, 300 steps", CAMVID, None, (100,)),),
    arms("plain", "ascent", "view_weights", "closed_form", "random_masks", "direct")
    | {
        "plain, 300 steps": "arm=plain budget.steps=300",
        "ascent, 300 steps": f"{V} budget.steps=300",
        "ascent, keep 0.4, 300 steps": f"{V} designer.keep_ratio=0.4 budget.steps=300",
        "ascent, period 2, 300 steps": f"{V} value.meta_period=2 designer.learning_rate=2e-2 "
        "budget.steps=300",
    },
    "evaluate.split=dev",
)
add(
    "vision-camvid",
    "real streets: CamVid's own pictures are the stream, 64 labelled ones steer",
    CAMVID,
    (Start("camvid", CAMVID, None, (0, 1, 2, 3, 4)),),
    arms(
        "plain",
        "ascent",
        "random_masks",
        "constant_mask",
        "fixed_random_direction",
        "closed_form",
        "direct",
    ),
)
