"""Keys of a language recipe that do not go together."""

import pytest

from vpretrain.config.recipe import load
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import UserError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["learner.shard=true"], "moves S, which shards do not"),
        (
            [
                "data.feedback={tasks: {sums: {kind: likelihood, rows: {kind: word_problems, split: feedback, rows: 64}, sources: [problems]}}}"
            ],
            "one copy of S for all of the stream",
        ),
    ],
)
def test_lookahead_is_refused_where_its_copy_of_s_cannot_be(keys, message):
    for own in ("value.alignment=lookahead", "designer={kind: greats_topk, alignment: lookahead}"):
        arm = "greats_topk" if "greats" in own else "token_weights"
        with pytest.raises(UserError, match=message):
            load("demo-language", [f"arm={arm}", own, *keys], schemas=SCHEMAS)
    load(
        "demo-language", ["arm=greats_topk", "designer={kind: greats_topk}", *keys], schemas=SCHEMAS
    )


def test_images_have_no_lookahead():
    with pytest.raises(UserError, match="lookahead is for language"):
        load("demo-vision", ["value.alignment=lookahead"], schemas=SCHEMAS)
