"""The studies of docs/results.md: what is compared, from which starts, with which seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import MODALITIES, SCHEMAS


@dataclass(frozen=True)
class Start:
    """A warm checkpoint, and the seeds that are run from it.

    Args:
        name: in the results.
        recipe: whose `learner.prepare` makes it, in words that `vpretrain prepare` takes.
        prepare_seed: of its weights and of the order of its text; None: the checkpoint that the
            recipe names.
        seeds: of the runs.
        folder: of a checkpoint that is at hand, below `--models`; then nothing is made.
        command: what made that folder.
    """

    name: str
    recipe: str
    prepare_seed: int | None
    seeds: tuple[int, ...]
    prepared_with: tuple[str, ...] = ()
    folder: str = ""
    command: str = ""

    def overrides(self, root: Path, rooted: list[str], models: Path) -> list[str]:
        """What a recipe needs so that it starts here."""
        if self.folder:
            return [f"learner.model={models / self.folder}"]
        return [f"learner.model={_location(self, str(root), tuple(rooted))}"]

    def description(self) -> str:
        """The command that makes it."""
        if self.folder:
            return self.command
        if self.prepare_seed is None:
            return f"the checkpoint of {self.recipe}"
        words = [f"learner.prepare.seed={self.prepare_seed}", *self.prepared_with]
        return f"vpretrain prepare {self.recipe} {' '.join(words)}"


@cache
def _location(start: Start, root: str, rooted: tuple[str, ...]) -> str:
    is_file = start.recipe.endswith(".yaml")
    source, rooted = (str(Path(root) / start.recipe), rooted) if is_file else (start.recipe, ())
    words = (
        []
        if start.prepare_seed is None
        else ["learner.model=null", f"learner.prepare.seed={start.prepare_seed}"]
    )
    made = recipes.load(source, [*words, *start.prepared_with, *rooted], schemas=SCHEMAS)
    found = made.learner.model or MODALITIES[made.modality]().load(made).location
    return str(found)


@dataclass(frozen=True)
class Study:
    """Rows side by side; the first is the baseline.

    Args:
        name: of `results/NAME.json`.
        description: the question.
        recipe: packaged name, or path from the repository's root.
        starts: warm checkpoints with their seeds.
        rows: overrides of each row, by its label.
        overrides: of all rows.
    """

    name: str
    description: str
    recipe: str
    starts: tuple[Start, ...]
    rows: dict[str, tuple[str, ...]]
    overrides: tuple[str, ...] = field(default=())


STUDIES: dict[str, Study] = {}

MAJORITY = (
    Start("majority-0", "demo-language", None, (0, 1)),
    Start("majority-1", "demo-language", 1, (2, 3)),
    Start("majority-2", "demo-language", 2, (4, 5)),
)
DEV = (Start("majority-1", "demo-language", 1, (100,)),)


BEFORE = (
    "learner.learning_rate=5e-5",
    "value.meta_period=4",
    "value.memory=0.0",
    "data.feedback.batch_size=64",
    *(
        f"designers.{arm}.tilt=0.4"
        for arm in ("token_weights", "document_weights", "weighted_targets", "weight_field")
    ),
)
"""Where the search on dev began; what it chose stands in the recipes."""


def add(
    name: str,
    description: str,
    recipe: str,
    starts: tuple[Start, ...],
    rows: dict[str, str],
    *overrides: str,
) -> None:
    """Declares a study; a row's overrides stand in one line, with spaces between them."""
    split = {row: tuple(words.split()) for row, words in rows.items()}
    STUDIES[name] = Study(name, description, recipe, starts, split, overrides)


W, C, F, D = "arm=token_weights", "arm=closed_form", "arm=field", "arm=document_weights"
add(
    "dev-surfaces",
    "which surface, and how far",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "token_weights": W,
        "token_weights, tilt 0.8": f"{W} designer.tilt=0.8",
        "token_weights, tilt 1.5": f"{W} designer.tilt=1.5",
        "token_weights, tilt 3": f"{W} designer.tilt=3",
        "token_weights, memory": f"{W} value.memory=0.9",
        "token_weights, memory, 1.5": f"{W} value.memory=0.9 designer.tilt=1.5",
        "token_weights, memory, 16 rows, 1.5": f"{W} value.memory=0.9 designer.tilt=1.5 "
        "data.feedback.batch_size=16",
        "document_weights, memory, 1.5": "arm=document_weights value.memory=0.9 designer.tilt=1.5",
        "closed_form, memory": f"{C} value.memory=0.9",
        "closed_form, memory, gate 0.8": f"{C} value.memory=0.9 designer.gate_max=0.8",
        "weighted_targets, memory": "arm=weighted_targets value.memory=0.9",
        "weighted_targets, memory, 1.5": "arm=weighted_targets value.memory=0.9 designer.tilt=1.5",
        "field": F,
        "field, memory": f"{F} value.memory=0.9",
        "field, memory, replay 8, updates 8": f"{F} value.memory=0.9 designer.replay=8 "
        "designer.updates=8",
        "weight_field, memory, 1.5": "arm=weight_field value.memory=0.9 designer.tilt=1.5",
    },
    "evaluate.split=dev",
    *BEFORE,
)

GSM, NOISY = "recipes/language/gsm8k-small.yaml", "recipes/language/gsm8k-small-noisy.yaml"
M = "value.memory=0.9 data.feedback.batch_size=32 value.meta_period=4"
M8 = "value.memory=0.9 data.feedback.batch_size=32 value.meta_period=8"
add(
    "dev-gsm8k",
    "which surface, and how far, on real text",
    NOISY,
    (Start("gsm8k-0", GSM, 0, (100,)),),
    {
        "onehot": "arm=onehot",
        "token_weights, as it was": W,
        "token_weights, memory": f"{W} {M}",
        "token_weights, memory, 1": f"{W} {M} designer.tilt=1",
        "weighted_targets, memory": f"arm=weighted_targets {M8}",
        "closed_form, memory": f"{C} {M8}",
        "document_weights, memory, 1": f"{D} {M8} designer.tilt=1",
        "token_weights, memory, lr 3e-4": f"{W} {M8} learner.learning_rate=3e-4",
        "onehot, lr 3e-4": "arm=onehot learner.learning_rate=3e-4",
        "token_weights, period 8, memory": f"{W} {M8}",
    },
    "evaluate.split=dev",
    "value.memory=0.0",
    "data.feedback.batch_size=64",
)

CLEAN = "data.stream.0.rows.noise_share=0.0 data.stream.0.rows.random_share=0.0"

DM = f"{D} value.memory=0.9 designer.tilt=1.5"
add(
    "dev-documents",
    "document weights and the learner's rate",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights, memory, lr 1e-4": f"{DM} learner.learning_rate=1e-4",
        "onehot, lr 1e-4": "arm=onehot learner.learning_rate=1e-4",
        "document_weights, memory, S all": f"{DM} learner.aligned_blocks=all",
        "document_weights, memory, 32 rows": f"{DM} data.feedback.batch_size=32",
        "document_weights, memory, period 8": f"{DM} value.meta_period=8",
        "document_weights, memory, dot": f"{DM} value.alignment=dot",
        "closed_form": C,
        "document_weights, memory 0.95": f"{D} value.memory=0.95 designer.tilt=1.5",
        "oracle: onehot, clean stream": f"arm=onehot {CLEAN}",
        "feedback_sft": "arm=feedback_sft",
        "onehot, lr 2e-4": "arm=onehot learner.learning_rate=2e-4",
        "document_weights, memory, lr 2e-4": f"{DM} learner.learning_rate=2e-4",
        "onehot, lr 4e-4": "arm=onehot learner.learning_rate=4e-4",
        "document_weights, memory, lr 4e-4": f"{DM} learner.learning_rate=4e-4",
    },
    "evaluate.split=dev",
    *BEFORE,
)

A = "arm=hidden_ascent value.memory=0.0 designer.updates=1"
add(
    "dev-ascent",
    "the paper's designer at its best",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "ascent": A,
        "+ updates 4": f"{A} designer.updates=4",
        "+ anchor": f"{A} designer.updates=4 designer.anchor=1",
        "+ anchor, gate price": f"{A} designer.updates=4 designer.anchor=1 designer.gate_price=0.3",
        "+ anchor, memory": f"{A} designer.updates=4 designer.anchor=1 value.memory=0.9",
        "+ anchor, memory, slower": f"{A} designer.updates=4 designer.anchor=1 value.memory=0.9 "
        "designer.learning_rate=1e-3",
        "ascent, dot": f"{A} value.alignment=dot",
        "ascent, cosine": f"{A} value.alignment=cosine",
        "ascent, guard off": f"{A} value.guard_window=0",
        "field, updates 4": f"{F} value.memory=0.0",
        "field, memory": F,
        "field, memory, period 2": f"{F} value.meta_period=2",
        "field, memory, replay 4, updates 8": f"{F} designer.replay=4 designer.updates=8",
        "field, memory, tau 0.5": f"{F} designer.temperature=0.5",
        "field, memory, 128 rows": f"{F} data.feedback.batch_size=128",
    },
    "evaluate.split=dev",
)

# What was chosen on dev stands in the recipes; from here on test.
MINORITY = (
    Start("minority-0", "demo-language-minority", None, (0, 1)),
    Start("minority-1", "demo-language-minority", 1, (2, 3)),
    Start("minority-2", "demo-language-minority", 2, (4, 5)),
)


def once(starts: tuple[Start, ...]) -> tuple[Start, ...]:
    """Each start with its first seed."""
    return tuple(replace(start, seeds=start.seeds[:1]) for start in starts)


def arms(*names: str) -> dict[str, str]:
    """A row an arm, at the recipe's settings."""
    return {name: f"arm={name}" for name in names}


CLOSED = "arm=closed_form value.memory=0.0"  # memory costs it on dev
add(
    "majority",
    "the embedded default: 55% of the problems that need a carry or a borrow are solved by "
    "the wrong rule",
    "demo-language",
    MAJORITY,
    arms(
        "onehot",
        "document_weights",
        "token_weights",
        "weighted_targets",
        "random_feedback",
        "fixed_random_direction",
        "shuffled_feedback",
        "loss_weights",
        "feedback_sft",
    )
    | {"closed_form": CLOSED},
)
add(
    "majority-others",
    "the other arms, and what a stream without errors would do",
    "demo-language",
    once(MAJORITY),
    arms("onehot", "source_weights", "weight_field", "uniform_smoothing", "self_distillation")
    | {"oracle: onehot on a clean stream": f"arm=onehot {CLEAN}"},
)
add(
    "minority",
    "the wrong rule is the exception: 25%",
    "demo-language-minority",
    MINORITY,
    arms("onehot", "document_weights", "token_weights", "fixed_random_direction")
    | {"closed_form": CLOSED},
)
REGIMES = {
    "random": ("half of the problems have one random wrong digit", "random-noise", MINORITY),
    "format": ("a clean stream in another format than what is measured", "other-format", MINORITY),
    "irrelevant": ("nine documents of ten are about something else", "mostly-irrelevant", MAJORITY),
    "off-target": (
        "the feedback is about something else than what is measured",
        "off-target",
        MAJORITY,
    ),
}
for regime, (description, file, starts) in REGIMES.items():
    add(
        f"regime-{regime}",
        description,
        f"recipes/language/regimes/{file}.yaml",
        starts,
        arms("onehot", "document_weights", "fixed_random_direction"),
    )
add(
    "harmless",
    "abilities in the stream that the feedback does not speak of",
    "recipes/language/regimes/kept-abilities.yaml",
    once(MAJORITY),
    arms("onehot", "document_weights", "feedback_sft"),
)
SECONDS = (
    ("majority", "demo-language", MAJORITY),
    ("minority", "demo-language-minority", MINORITY),
)
for name, recipe, starts in SECONDS:
    add(
        f"{name}-seconds",
        "equal seconds of training",
        recipe,
        starts,
        arms("onehot", "document_weights"),
        "budget={seconds: 30}",
    )
add(
    "efficiency",
    "tokens and seconds to one-hot's final score",
    "demo-language",
    once(MAJORITY),
    arms("onehot", "document_weights"),
    "evaluate.every=20",
)

WEAK = "learner.prepare.phases=[{steps: 1000, learning_rate: 1.5e-3, to: 1e-4}]"
GSM_START = (Start("gsm8k-0", GSM, 0, (0, 1, 2)),)
WEAK_START = (Start("gsm8k-1, half the steps", GSM, 1, (2,), (WEAK,)),)
REAL = arms("onehot", "token_weights", "closed_form", "fixed_random_direction")
add(
    "gsm8k-noisy",
    "real text, wrong digits planted in 30% of the stream's GSM8K rows",
    NOISY,
    GSM_START,
    # The last row is one-hot with the steps that fit into the seconds of token_weights.
    REAL | {"onehot, 155 steps": "arm=onehot budget.steps=155"},
)
add(
    "gsm8k-second-start",
    "the noisy stream from a second learner, made in full",
    NOISY,
    (Start("gsm8k-1", GSM, 1, (3, 4, 5)),),
    arms("onehot", "token_weights"),
)
add(
    "gsm8k-weak", "the same from a learner that was made in half the steps", NOISY, WEAK_START, REAL
)
add(
    "gsm8k",
    "real text as it is",
    GSM,
    GSM_START,
    arms("onehot", "token_weights", "fixed_random_direction"),
    "evaluate.tasks=[]",
)

ORACLE = "data.stream.2.rows.corrupt_digits=0.0"
add(
    "gsm8k-references",
    "real text with planted errors: a filter that knows them, and training on the feedback rows",
    NOISY,
    GSM_START,
    arms("onehot", "feedback_sft") | {"oracle: onehot without the errors": f"arm=onehot {ORACLE}"},
)
QUESTIONS = "kind: jsonl, path: mathematics/{file}.jsonl, prompt: problem, solution: solution"
SECOND = (
    "{" + QUESTIONS.format(file="valid") + ", skip_rows: 1412, rows: 333}"
)  # between rows that the stream holds too
MEASURED = "{" + QUESTIONS.format(file="valid") + ", rows: 1000}"
STUDIES["gsm8k-second-target"] = Study(
    "gsm8k-second-target",
    "one stream, two targets: word problems or mathematics questions steer",
    NOISY,
    GSM_START,
    {
        "onehot": ("arm=onehot",),
        "GSM8K steers": (W,),
        "mathematics questions steer": (W, f"data.feedback.rows={SECOND}"),
    },
    (f"data.evaluation.mathematics={MEASURED}", "evaluate.also=[mathematics]"),
)
add(
    "gsm8k-share-10",
    "a tenth of the noisy stream's documents are GSM8K's",
    NOISY,
    GSM_START,
    arms("onehot", "token_weights"),
    "data.stream.0.weight=0.45",
    "data.stream.1.weight=0.45",
    "data.stream.2.weight=0.1",
)

ROWS = "data.feedback.rows={{kind: word_problems, split: feedback, rows: {}}}"
add(
    "dev-knobs",
    "what the settings of document weights matter",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "document_weights": D,
        "period 2": f"{D} value.meta_period=2",
        "period 32": f"{D} value.meta_period=32",
        "burn-in 0": f"{D} value.settle_steps=0",
        "burn-in 64": f"{D} value.settle_steps=64",
        "S: last block": f"{D} learner.aligned_blocks=1",
        "S: all": f"{D} learner.aligned_blocks=all",
        "16 rows a feedback batch": f"{D} data.feedback.batch_size=16",
        "128 rows a feedback batch": f"{D} data.feedback.batch_size=128",
        "tilt 0.5": f"{D} designer.tilt=0.5",
        "tilt 4": f"{D} designer.tilt=4",
        "closed_form, K 8": CLOSED,
        "closed_form, K 24": f"{CLOSED} designer.candidates=24",
    },
    "evaluate.split=dev",
)
for size in (64, 256, 2048):
    spec = ROWS.format(size)
    STUDIES["dev-knobs"].rows[f"{size} feedback problems"] = (D, spec)

CONFIG = (
    "learner.prepare.config={{model_type: llama, hidden_size: {0}, intermediate_size: {1}, "
    "num_hidden_layers: {2}, "
    "num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 512, "
    "tie_word_embeddings: false}}"
)
SIZES = {"1M": (160, 432, 4), "3M": (256, 688, 4), "10M": (384, 1024, 6)}
for size, shape in SIZES.items():
    phases = (
        "{steps: 1400, learning_rate: 1e-3}, {steps: 200, learning_rate: 3e-4}, {steps: 200, "
        "learning_rate: 5e-5}"
    )
    made = (CONFIG.format(*shape), f"learner.prepare.phases=[{phases}]")
    start = Start(f"majority-{size}", "demo-language", 0, (0, 1, 2), made)
    add(
        f"size-{size}",
        f"the majority regime with a learner of about {size} parameters",
        "demo-language",
        (start,),
        arms("onehot", "document_weights"),
    )

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
    "rendered scenes: do masks that hear segmentation beat masks that do not?",
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

# The paper's designer as the paper has it (v1 A.1, A.2; v2 F.2), see docs/results.md.
PAPER_VALUE = (
    "value.unit=raw value.alignment=dot value.memory=0 value.shrink=false value.guard_window=0 "
    "value.settle_steps=0 data.feedback.batches=1 learner.aligned_norm=false "
    "learner.aligned_head=false"
)
PAPER_NETWORK = (
    "designer.candidates=64 designer.gate_max=0.5 designer.hidden=256 designer.layers=6 "
    "designer.heads=4 designer.learning_rate=1e-4 designer.updates=1"
)
PAPER = f"arm=ascent {PAPER_NETWORK} {PAPER_VALUE}"
PAPER_SCHEDULE = (
    "learner.final_fraction=0.0",
    "learner.loss_mean=example",
    "data.feedback.loss_mean=example",
)
OURS_HIDDEN = f"arm=hidden_ascent {PAPER_NETWORK} {PAPER_VALUE}"
add(
    "dev-paper-designer",
    "from the paper's settings of its designer, one change at a time",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "ascent": PAPER,
        "ascent, random feedback": f"{PAPER} feedback.control=random",
        "ascent, starts at the learner": f"{PAPER} designer.start=learner",
        "ascent, rate 1e-3": f"{PAPER} designer.learning_rate=1e-3",
        "ascent, gate 0.1": f"{PAPER} designer.gate_max=0.1",
        "ascent, 8 updates": f"{PAPER} designer.updates=8",
        "ascent, starts at the learner, rate 1e-3": f"{PAPER} designer.start=learner "
        "designer.learning_rate=1e-3",
        "ascent, cosine": f"{PAPER} value.alignment=cosine",
        "ascent, optimizer-aware": f"{PAPER} value.alignment=optimizer_aware",
        "ascent, head and norm in S": f"{PAPER} learner.aligned_norm=true "
        "learner.aligned_head=true",
        "ascent, period 1": f"{PAPER} value.meta_period=1",
        "reads hidden states": OURS_HIDDEN,
        "regression": f"arm=field {PAPER_NETWORK} {PAPER_VALUE} value.unit=standardised",
        "closed_form": "arm=closed_form",
        "document_weights": "arm=document_weights",
    },
    "evaluate.split=dev",
    *PAPER_SCHEDULE,
)

FROM_LEARNER = f"{PAPER} designer.start=learner"
add(
    "dev-paper-designer-start",
    "the paper's designer, its targets starting at the learner's own probabilities (ours)",
    "demo-language",
    DEV,
    {
        "onehot": "arm=onehot",
        "rate 1e-3": f"{FROM_LEARNER} designer.learning_rate=1e-3",
        "rate 3e-3": f"{FROM_LEARNER} designer.learning_rate=3e-3",
        "rate 1e-3, 8 updates": f"{FROM_LEARNER} designer.learning_rate=1e-3 designer.updates=8",
        "rate 1e-3, optimizer-aware": f"{FROM_LEARNER} designer.learning_rate=1e-3 "
        "value.alignment=optimizer_aware",
        "reads hidden states, rate 1e-3": f"{OURS_HIDDEN} designer.start=learner "
        "designer.learning_rate=1e-3",
    },
    "evaluate.split=dev",
    *PAPER_SCHEDULE,
)
LEARNED = f"{FROM_LEARNER} designer.learning_rate=1e-3"
PAPER_ROWS = {
    "onehot": "arm=onehot",
    "ascent": PAPER,
    "ascent, random feedback": f"{PAPER} feedback.control=random",
    "ascent from the learner": LEARNED,
    "ascent from the learner, random feedback": f"{LEARNED} feedback.control=random",
    "uniform smoothing, same gate": "arm=uniform_smoothing designer.candidates=64 "
    "designer.control_gate=0.023",
    "self-distillation, same gate": "arm=self_distillation designer.candidates=64 "
    "designer.control_gate=0.023",
    "closed_form": "arm=closed_form",
    "document_weights": "arm=document_weights",
}
add(
    "paper-designer",
    "the paper's designer as the paper has it, 30 updates",
    "demo-language",
    MAJORITY,
    PAPER_ROWS,
    *PAPER_SCHEDULE,
)
add(
    "paper-designer-long",
    "the same with 125 updates",
    "demo-language",
    once(MAJORITY),
    {
        row: PAPER_ROWS[row]
        for row in ("onehot", "ascent", "ascent from the learner", "document_weights")
    },
    "budget.steps=1000",
    "evaluate.every=125",
    *PAPER_SCHEDULE,
)

SMOL = "recipes/language/gsm8k-smollm2.yaml"
RELEASED = Start(
    "released",
    SMOL,
    None,
    (0, 1, 2),
    folder="smollm2",
    command="../shared/models/fetch smollm2-135m MODELS/smollm2",
)
ADAPTED = replace(
    RELEASED,
    name="adapted",
    folder="smollm2-adapted/model",
    command=f"vpretrain train {SMOL} arm=onehot budget.steps=30 seed=9 "
    "learner.model=MODELS/smollm2 --out MODELS/smollm2-adapted",
)
ERRORS = "data.stream.2.rows.corrupt_digits=0.3"
add(
    "smollm2-noisy",
    "SmolLM2-135M after 30 one-hot steps; wrong digits in 30% of the stream's GSM8K rows",
    SMOL,
    (ADAPTED,),
    {
        "onehot": f"arm=onehot {ERRORS}",
        "document_weights": f"arm=document_weights {ERRORS} designers.document_weights.tilt=0.4",
        "oracle: onehot, clean stream": "arm=onehot",
        "fixed random direction": "arm=document_weights feedback.control=fixed_direction "
        f"{ERRORS} designers.document_weights.tilt=0.4",
        "token_weights": f"arm=token_weights {ERRORS}",
        "ascent": f"{PAPER} {ERRORS}",
        "feedback_sft": f"arm=feedback_sft {ERRORS}",
    },
    "data.evaluation.test.rows=100",
)
