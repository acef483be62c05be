"""Values of tokens, by hand, and the text of each token."""

from dataclasses import replace

import pytest
import torch

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.language.explain import token_values
from vpretrain.language.learner.targets import one_hot, soft_target_loss
from vpretrain.language.steering.rules import Anchored
from vpretrain.method.exact import ExactDesigner
from vpretrain.method.reliability import Reliability
from vpretrain.run.finished_run import with_feedback


def test_values_are_slopes_of_the_loss_along_the_direction():
    recipe = tiny_recipe(
        "arm=closed_form", "value.alignment=dot", "value.estimator=double_backward"
    )
    materials = Language().load(recipe)
    parts = Language().build(recipe, materials)
    parts.learner.model.eval()
    value_estimator = with_feedback(recipe, parts, parts.stream)
    context = parts.learner.forward(next(parts.stream))
    seen = token_values.valued_batch(
        context, ExactDesigner(Anchored(5), Reliability(False)), value_estimator.on_part(), 5
    )
    plain, names = one_hot(context.labels), list(parts.learner.aligned)
    pre = torch.autograd.grad(
        soft_target_loss(context.logits, plain), list(parts.learner.aligned.values())
    )
    down = [
        sum(d[name] for d in value_estimator.feedback_gradients)
        / len(value_estimator.feedback_gradients)
        for name in names
    ]
    expected = sum(float((a * b).sum()) for a, b in zip(pre, down, strict=True))
    assert float(seen.values[:, 0].mean()) == pytest.approx(expected, rel=1e-4)
    pieces = list(token_values.documents_of(seen))
    assert sum(sum(piece.valued) for piece in pieces) == pytest.approx(
        float(seen.values[:, 0].sum()), rel=1e-5
    )
    for piece in pieces:
        wanted = [flag and at > 0 for at, flag in enumerate(piece.document.predicted)]
        assert [value is not None for value in piece.values] == wanted


def test_values_do_not_depend_on_the_length_of_the_document():
    """Under ``loss_mean: example`` the task's V does, as the loss does."""
    recipe = tiny_recipe("arm=closed_form", "value.alignment=dot", "learner.loss_mean=example")
    parts = Language().build(recipe, Language().load(recipe))
    parts.learner.model.eval()
    value_of = with_feedback(recipe, parts, parts.stream).on_part()
    context = parts.learner.forward(next(parts.stream))
    by_token = replace(context, batch=replace(context.batch, loss_mean="token"))
    seen, expected = (
        token_values.valued_batch(each, parts.designer, value_of, 5) for each in (context, by_token)
    )
    assert context.document.bincount().unique().numel() > 1
    torch.testing.assert_close(seen.each, expected.each, rtol=1e-3, atol=1e-4)
    value = float(value_of(context, one_hot(context.labels)).value)
    assert token_values.task_values([seen], recipe).onehot == pytest.approx(value, rel=1e-3)


def test_the_bound_is_what_the_best_candidate_gives():
    recipe = tiny_recipe("designers.closed_form.gate_max=0.5")
    values = torch.tensor([[1.0, 3.0, -2.0], [2.0, -1.0, 0.0]])
    ids = torch.tensor([[0, 1, 2], [0, 1, 2]])
    seen = token_values.ValuedBatch(
        ids,
        torch.full((2, 3), 1 / 3).log(),
        values[None],
        one_hot(ids[:, 0]),
        values[:, :1],
        torch.ones(2, 1),
        None,
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([1, 2]),
        (),
        torch.ones(2),
    )
    worth = token_values.task_values([seen], recipe)
    assert worth.onehot == worth.designer == 1.5
    assert worth.bound == pytest.approx(((0.5 * 1 + 0.5 * 3) + 2) / 2)


class Bytes:
    """One token a byte: most characters take several."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", errors="replace")


class ByteFallback:
    """As the decoder of this name: of adjacent bytes all are readable, or none."""

    def decode(self, ids, **options):
        try:
            return bytes(ids).decode("utf-8")
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(ids)


@pytest.mark.parametrize("tokenizer", [Bytes(), ByteFallback()])
@pytest.mark.parametrize("text", ["plain", "naïve 中文 🙂\nend", "", "日本語の文章をここに書く"])
def test_tokens_spell_their_document(text, tokenizer):
    spelled = token_values.spelled(tokenizer, list(text.encode()))
    assert "".join(spelled) == text and len(spelled) == len(text.encode())


@pytest.mark.parametrize("arm", ["ascent", "uniform_smoothing"])
def test_candidates_beyond_those_of_the_bound_have_their_own_probabilities(arm):
    recipe = tiny_recipe(f"arm={arm}", f"designers.{arm}.candidates=9")
    parts = Language().build(recipe, Language().load(recipe))
    value_of = with_feedback(recipe, parts, parts.stream).on_part()
    context = parts.learner.forward(next(parts.stream))
    seen = token_values.valued_batch(context, parts.designer, value_of, 4)
    log_p = context.logits.detach().log_softmax(dim=1)
    torch.testing.assert_close(seen.own_p, log_p.gather(1, seen.task.ids).exp())
    token_values.task_values([seen], recipe)  # with the network's scores beside the exact values
    for token in (token for each in token_values.documents_of(seen) for token in each.steered):
        assert len(token.ids) == len(token.p) == len(token.q) == len(token.s) == 9
