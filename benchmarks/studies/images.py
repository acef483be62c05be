"""Rendered scenes and real streets."""

from __future__ import annotations

from studies.study import STUDIES, Start, Study, add, arms

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

W = "arm=view_weights"
FAR = f"{W} learner.aligned_blocks=3 value.shrink=false"
add(
    "vision-weights-dev",
    "weights of views: which value, how often, how far",
    "demo-vision",
    (Start("scenes-0", "demo-vision", None, (100, 101)),),
    {
        "plain": "arm=plain",
        "plain, 220 steps": "arm=plain budget.steps=220",
        "view_weights": W,
        "tilt 2": f"{W} designer.tilt=2.0",
        "period 8, memory 0.9": f"{W} value.meta_period=8 value.memory=0.9",
        "128 pictures of feedback": f"{W} data.feedback.batch_size=64",
        "16 steps of the heads": f"{W} data.feedback.head.steps=16",
        "S is everything": f"{W} learner.aligned_blocks=3",
        "dot": f"{W} value.alignment=dot",
        "no shrinkage": f"{W} value.shrink=false",
        "no shrinkage, tilt 2": f"{W} value.shrink=false designer.tilt=2.0",
        "S is everything, no shrinkage, period 16": f"{FAR} value.meta_period=16",
        "the same, tilt 2": f"{FAR} value.meta_period=16 designer.tilt=2.0",
        "the same, period 32": f"{FAR} value.meta_period=32",
        "ascent": V,
        "chosen_crops": "arm=chosen_crops",
    },
    "evaluate.split=dev",
    "evaluate.probes=[segmentation]",
)
PAPER_META = (
    f"{V} value.unit=raw value.memory=0 value.shrink=false value.settle_steps=0 "
    "data.meta_batch_size=32 "
    "data.feedback.tasks.depth=8 designer.updates=1 designer.sparsity=0.131 "
    "designer.total_variation=0.144 designer.keep_ratio=0.6"
)
add(
    "vision-masks",
    "rendered scenes: learned masks, controls as uneven as they are, and the paper's meta step",
    "demo-vision",
    SCENES,
    arms(
        "plain",
        "ascent",
        "reversed_feedback",
        "fixed_random_direction",
        "uneven_masks",
        "other_pictures",
    )
    | {
        "the paper's meta step": f"{PAPER_META} designer.learning_rate=1.54e-4",
        "the paper's meta step, rate 1e-2": f"{PAPER_META} designer.learning_rate=1e-2",
        "plain, 330 steps": "arm=plain budget.steps=330",
    },
)

SPARING = f"{FAR} value.meta_period=16 value.estimator=one_sided_difference"
"""Weights of views as dev chose them, at the lowest cost."""
VALUED_ROWS = {
    "plain": "arm=plain",
    "view_weights, sparing": SPARING,
    "view_weights, sparing, one random direction": SPARING.replace(
        W, "arm=fixed_random_direction designer.kind=view_weights"
    ),
    "view_weights, sparing, reversed": SPARING.replace(
        W, "arm=reversed_feedback designer.kind=view_weights"
    ),
    "plain, 215 steps": "arm=plain budget.steps=215",
}
add(
    "vision-sparing",
    "rendered scenes: weights of views at the lowest cost",
    "demo-vision",
    SCENES,
    VALUED_ROWS,
)
NUCLEI = "recipes/vision/nuclei.yaml"
add(
    "vision-nuclei",
    "micrographs: does segmentation steer masks and weights of views?",
    NUCLEI,
    (
        Start("nuclei-0", NUCLEI, None, (0, 1)),
        Start("nuclei-1", NUCLEI, 1, (2, 3)),
        Start("nuclei-2", NUCLEI, 2, (4, 5)),
    ),
    VALUED_ROWS | arms("ascent", "uneven_masks", "direct"),
)
ROOM = "recipes/vision/room.yaml"
add(
    "vision-room-dev",
    "frames of a room: does depth steer weights of views; plain training at lower rates",
    ROOM,
    (Start("room-0", ROOM, None, (100,)),),
    arms("plain", "direct")
    | {
        "view_weights": W,
        "view_weights, reversed": "arm=reversed_feedback designer.kind=view_weights",
        "view_weights, one random direction": "arm=fixed_random_direction "
        "designer.kind=view_weights",
        "view_weights, tilt 2": f"{W} designer.tilt=2.0",
        "plain, 3e-4": "arm=plain learner.learning_rate=3e-4",
        "plain, 1e-4": "arm=plain learner.learning_rate=1e-4",
    },
    "evaluate.split=dev",
)
add(
    "vision-room",
    "frames of a room: does depth steer masks and weights of views?",
    ROOM,
    (
        Start("room-0", ROOM, None, (0, 1)),
        Start("room-1", ROOM, 1, (2, 3)),
        Start("room-2", ROOM, 2, (4, 5)),
    ),
    VALUED_ROWS | arms("ascent", "uneven_masks", "direct"),
)
IJEPA = ("learner.kind=ijepa", "learner.predictor={width: 32, depth: 2, heads: 2}")
STUDIES["vision-ijepa"] = Study(
    "vision-ijepa",
    "I-JEPA on rendered scenes: learned context masks beside the paper's blocks, random and uneven",
    "demo-vision",
    (
        Start("ijepa-0", "demo-vision", 0, (0, 1), IJEPA),
        Start("ijepa-1", "demo-vision", 1, (2, 3), IJEPA),
        Start("ijepa-2", "demo-vision", 2, (4, 5), IJEPA),
    ),
    {
        "plain": ("arm=plain",),
        "ascent": (V,),
        "uneven_masks": ("arm=uneven_masks",),
        "random_masks": ("arm=random_masks",),
        "fixed_random_direction": ("arm=fixed_random_direction",),
        "patch_weights": ("arm=patch_weights",),
    },
    (*IJEPA, "evaluate.probes=[segmentation, classification, knn]"),
)
