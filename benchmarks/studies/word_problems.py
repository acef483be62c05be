"""The demo's word problems, on test, at what was chosen on dev: that stands in the recipes."""

from __future__ import annotations

from studies.starts import CLEAN, CLOSED, MAJORITY, MINORITY
from studies.study import Start, add, arms, once

# As good on dev at a fraction of the cost (dev-cheaper).
SPARING = "arm=document_weights learner.aligned_blocks=1 value.meta_period=32"
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
    | {"closed_form": CLOSED, "document_weights, sparing": SPARING},
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
