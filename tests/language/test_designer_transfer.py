"""A designer in another run: what it does there, that feedback no longer reaches it, and where it
does not belong.
"""

import dataclasses
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from tests.designers import of_every_kind
from tests.run.test_train import tiny_recipe, weights_hash
from vpretrain.language import Language
from vpretrain.language.designer_transfer import designer_for
from vpretrain.language.steering.arms import ARMS, Site
from vpretrain.method.reliability import Reliability
from vpretrain.run.launch import train_one
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system.errors import UserError

ARM = [
    "arm=field",
    "value.meta_period=1",
    "designers.field.learning_rate=1e-2",
    "evaluate.answer=null",
]


@pytest.fixture(scope="module")
def materials():
    return Language().load(tiny_recipe())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run with a learned designer."""
    out = tmp_path_factory.mktemp("run")
    train_one(tiny_recipe(*ARM), out, lambda record, fraction: None)
    return out


def carried(folder, *overrides):
    start = of_every_kind(ARMS, init_from=folder)
    return tiny_recipe(*ARM, "seed=1", *start, *overrides)


def trained(recipe, materials):
    parts = Language().build(recipe, materials)
    result = train(Run(recipe, parts, step0={}))
    return weights_hash(parts), parts.designer.state_dict()["network"], result.history


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_a_frozen_designer_steers_without_feedback(folder, materials):
    saved = torch.load(folder / "designer" / "state.pt", weights_only=True)["network"]
    turned = {
        n: dataclasses.replace(task, documents=task.documents[::-1])
        for n, task in materials.tasks.items()
    }
    wrong = dataclasses.replace(materials, tasks=turned)
    recipe = carried(folder, "designer.frozen=true")
    weights, network, history = trained(recipe, materials)
    assert same(network, saved) and not any("gain" in record for record in history)
    assert trained(recipe, wrong)[0] == weights  # the feedback set is not read at all
    plain = tiny_recipe("arm=onehot", "seed=1", "evaluate.answer=null")
    parts = Language().build(plain, materials)
    train(Run(plain, parts, step0={}))
    assert weights_hash(parts) != weights  # it does steer


def test_a_carried_designer_goes_on_learning(folder, materials):
    saved = torch.load(folder / "designer" / "state.pt", weights_only=True)["network"]
    recipe = carried(folder)
    assert same(Language().build(recipe, materials).designer.state_dict()["network"], saved)
    _, network, history = trained(recipe, materials)
    assert not same(network, saved) and all("gain" in record for record in history)


def test_the_papers_designer_is_carried_to_another_learner(tmp_path, materials):
    """Its network reads tokens, so that the learner's width does not matter; its table does."""
    arm = ("arm=ascent", "value.meta_period=1", "designers.ascent.learning_rate=1e-2")
    train_one(tiny_recipe(*arm), tmp_path / "run", lambda record, fraction: None)
    saved = torch.load(tmp_path / "run/designer/state.pt", weights_only=True)["network"]
    start = (*arm, "seed=1", f"designers.ascent.init_from={tmp_path / 'run'}")
    _, network, history = trained(tiny_recipe(*start), materials)
    assert not same(network, saved) and all("gain" in record for record in history)
    sizes = "num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
    wider = f"learner.config={{model_type: llama, vocab_size: 96, hidden_size: 32, {sizes}}}"
    frozen = tiny_recipe(*start, "designers.ascent.frozen=true", wider)
    _, network, history = trained(frozen, materials)
    assert same(network, saved) and not any("gain" in record for record in history)
    other = wider.replace("vocab_size: 96", "vocab_size: 100")
    with pytest.raises(UserError, match=r"(?s)another vocabulary.*vocabulary 96.*vocabulary 100"):
        Language().build(tiny_recipe(*start, other), materials)
    with pytest.raises(UserError, match="companion: this is a key of the kind"):
        tiny_recipe(*start, "arm=ascent", "designer.companion=true")


def test_another_learner_needs_the_companion(folder, materials):
    wider = (
        "learner.config={model_type: qwen2, vocab_size: 120, hidden_size: 32, "
        "intermediate_size: 32, "
        "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, "
        "tie_word_embeddings: true}"
    )
    with pytest.raises(UserError, match=r"(?s)designer.companion.*width 24.*width 32"):
        Language().build(carried(folder, "designer.frozen=true", wider), materials)
    for frozen in ("true", "false"):
        recipe = carried(folder, f"designer.frozen={frozen}", "designer.companion=true", wider)
        _, _, history = trained(recipe, materials)
        assert all(torch.isfinite(torch.tensor(record["loss"])) for record in history)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_its_own_learner_the_companion_changes_nothing(folder, materials, dtype):
    """The model that the run left, steered by its own designer: read directly or through a copy,
    the targets are equal, and so is the precision.
    """
    model = ("learner.config=null", f"learner.model={folder / 'model'}", f"learner.dtype={dtype}")
    recipe = carried(folder, "designer.frozen=true", *model)
    own = Language().load(recipe)
    tasks = []
    for companion in ("false", "true"):
        section = recipe.designer.model_copy(update={"companion": companion == "true"})
        parts = Language().build(recipe.model_copy(update={"designer": section}), own)
        parts.learner.model.eval()
        tasks.append(parts.designer.make_task(parts.learner.forward(next(parts.stream)), None))
    assert torch.equal(tasks[0].ids, tasks[1].ids)
    torch.testing.assert_close(tasks[0].mass, tasks[1].mass, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "where", "description"),
    [
        (["arm=weight_field"], "arm", "field"),
        (["designer.hidden=32"], "designer.hidden", "another shape"),
    ],
)
def test_a_designer_of_another_kind_is_refused(folder, materials, overrides, where, description):
    with pytest.raises(UserError) as caught:
        Language().build(carried(folder, *overrides), materials)
    (problem,) = caught.value.problems
    assert problem.where == where and description in problem.message + problem.accepted


def test_a_designer_without_a_network_has_nothing_to_start_from(folder):
    with pytest.raises(
        UserError, match=r"init_from: this is a key of the kind .*field or weight_field"
    ):
        carried(folder, "arm=token_weights", f"designer.init_from={folder}")


def test_the_baseline_beside_it_carries_nothing(folder, materials):
    assert not Language().build(carried(folder, "arm=onehot"), materials).designer.uses_feedback


def test_a_trainer_whose_rows_are_tokens_is_asked_for_its_tokenizer(folder, materials):
    recipe = carried(folder)
    site = Site(Language().build(tiny_recipe(), materials).learner, 0, Reliability(True))
    with pytest.raises(UserError, match=r"(?s)init_from: .*accepted +processing_class=tokenizer"):
        designer_for(ARMS.section_of(recipe), site, recipe.learner, None)


def test_another_tokenizer_is_refused(folder, materials, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    tokenizer = AutoTokenizer.from_pretrained(other / "model")
    tokenizer.add_tokens(["<unlike>"])
    tokenizer.save_pretrained(other / "model")
    with pytest.raises(UserError, match=r"(?s)another tokenizer.*<unlike>"):
        Language().build(carried(other), materials)


def test_what_is_no_run_is_refused(folder, materials, tmp_path):
    with pytest.raises(UserError, match=r"designer\.init_from: there is no such folder"):
        Language().build(carried(tmp_path / "nothing"), materials)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "designer" / "state.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        Language().build(carried(broken), materials)
    for key in ("frozen", "companion"):
        with pytest.raises(UserError, match=r"designer\.init_from"):
            tiny_recipe("arm=field", f"designer.{key}=true")
