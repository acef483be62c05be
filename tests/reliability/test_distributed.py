"""Several processes are one run: the same figures and step, and checkpoints go on on any number."""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tests.reliability.processes import together
from tests.reliability.runs import build, language_recipe, vision_recipe
from vpretrain.language import Language
from vpretrain.method.network import LearnedDesigner
from vpretrain.run import launch
from vpretrain.run.build import new_step
from vpretrain.run.checkpoint import CheckpointManager
from vpretrain.run.launch import train_one
from vpretrain.run.run import Run
from vpretrain.run.train import train
from vpretrain.system import distributed
from vpretrain.system.errors import UserError, user_error
from vpretrain.vision import Vision
from vpretrain.vision.data.crops import MultiCrop
from vpretrain.vision.modality import _stream

# its norms are in the model's dtype; those of llama round to float32 whatever they are given
GPT2 = (
    "learner.config={model_type: gpt2, vocab_size: 96, n_embd: 24, n_layer: 2, n_head: 2, "
    "n_positions: 128, "
    "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0, tie_word_embeddings: false, "
    "bos_token_id: 0, eos_token_id: 0}"
)
STEPS = 8  # with three meta steps among them
WIDE = ["learner.dtype=float64", "learner.learning_rate=1e-3"]


def words_recipe(*overrides):
    few = [f"budget.steps={STEPS}", "evaluate.answer=null", "data.evaluation.test.rows=8"]
    return language_recipe(*few, GPT2, *WIDE, *overrides)


ALIKE = {
    "dino": ["learner.config.pos_embed_rescale=null"],
    "ijepa": [],
}  # else each process draws its own, as in dropout


def pictures_recipe(*overrides, kind="dino"):
    few = [f"budget.steps={STEPS}", *WIDE, "learner.learning_rate=1e-4", *ALIKE[kind]]
    return vision_recipe(*few, *overrides, kind=kind)


@pytest.fixture(scope="module")
def words():
    return Language().load(words_recipe())


@pytest.fixture(scope="module")
def pictures():
    return {kind: Vision().load(pictures_recipe(kind=kind)) for kind in ("dino", "ijepa")}


def ran(recipe, materials, checkpoints=None, resume=None):
    """Losses and gains of a run, what it counted, and its learner's and designer's weights."""
    parts = build(recipe, materials)
    if isinstance(parts.designer, LearnedDesigner):
        # Adam makes a whole step of a gradient that is nothing but rounding
        parts.designer.network.double()
    result = train(Run(recipe, parts, step0={}, checkpoints=checkpoints, resume=resume))
    learned = {**parts.designer.state_dict(), "remembered": []}  # whose rows lie in parts
    held = distributed.tensors_in([dict(parts.learner.model.state_dict()), learned])
    held = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in held]
    return {
        "loss": [record["loss"] for record in result.history],
        "gain": [record["gain"] for record in result.history if "gain" in record],
        "counted": (result.spent.steps, result.spent.tokens),
        "weights": torch.cat([tensor.double().flatten() for tensor in held]).tolist(),
    }


def apart(result, expected):
    """Distance of two vectors over the length of the second."""
    result, expected = torch.tensor(result), torch.tensor(expected)
    return float((result - expected).norm() / expected.norm())


def assert_one_run(recipe, materials, tolerance=1e-6):
    """Two processes against one."""
    one, two = ran(recipe, materials), together(2, ran, recipe, materials)
    same = two[0] == two[1]
    assert same  # they hold the same learner and designer, bit for bit
    assert two[0]["counted"] == one["counted"]
    assert len(one["loss"]) == STEPS
    assert two[0]["loss"] == pytest.approx(one["loss"], rel=tolerance)
    assert two[0]["gain"] == pytest.approx(one["gain"], rel=1e2 * tolerance, abs=1e-12)
    assert apart(two[0]["weights"], one["weights"]) < 1e2 * tolerance


LANGUAGE = {
    "onehot": [],
    "token_weights": [],
    "document_weights": [],
    "source_weights": ["value.estimator=one_sided_difference"],
    "closed_form": [],
    "ascent": [
        "designer.updates=2",
        "value.unit=raw",
        "value.meta_batch={batch_size: 4, window_tokens: 48}",
        "learner.loss_mean=example",
        "data.feedback.loss_mean=example",
    ],
    "hidden_ascent": ["designer.updates=2"],
    "field": ["designer.replay=2", "designer.updates=2"],
    "weighted_targets": ["value.alignment=cosine", "learner.accumulate=2"],
    "greats_topk": ["learner.accumulate=2"],
    "repeat_topk": ["learner.accumulate=2", "designer.repeats=6"],
    "dga": [],
    "rho1": [],
    "random_selection": [],
    "opus": ["designer.draws=3", "designer.rounds=2", "data.packing=false"],
}


@pytest.mark.parametrize("arm", LANGUAGE)
def test_two_processes_train_language_as_one(words, arm):
    assert_one_run(words_recipe(f"arm={arm}", *LANGUAGE[arm]), words)


VISION = [
    ("dino", "ascent", []),
    ("dino", "view_weights", ["learner.centering=sinkhorn"]),
    ("dino", "view_weights", ["value.estimator=one_sided_difference"]),
    ("dino", "chosen_crops", ["designer.candidates=2"]),
    ("dino", "random_masks", []),
    ("ijepa", "patch_weights", ["designer.kind=patch_weights"]),
    ("ijepa", "ascent", ["designers.ascent.meta_images=2"]),
]


@pytest.mark.parametrize("kind, arm, overrides", VISION)
def test_two_processes_train_vision_as_one(pictures, kind, arm, overrides):
    assert_one_run(pictures_recipe(f"arm={arm}", *overrides, kind=kind), pictures[kind])


SHARDS = {
    "closed_form": ["learner.accumulate=2"],
    "ascent": [
        "learner.activation_checkpointing=true",
        "value.alignment=cosine",
        "value.estimator=double_backward",
    ],
    "token_weights": ["learner.lora={r: 2}"],
}


@pytest.mark.parametrize("arm", SHARDS)
def test_two_processes_train_language_in_shards_as_one(words, arm):
    assert_one_run(words_recipe(f"arm={arm}", "learner.shard=true", *SHARDS[arm]), words)


def lies(recipe, materials):
    parts = build(recipe, materials)
    new_step(recipe, parts)
    return {name: isinstance(p, DTensor) for name, p in parts.learner.model.named_parameters()}


def test_blocks_below_s_are_shared_out_and_nothing_else(words):
    result = together(2, lies, words_recipe("arm=onehot", "learner.shard=true"), words)[0]
    assert {name.startswith("transformer.h.0.") for name, sharded in result.items() if sharded} == {
        True
    }
    assert all(sharded for name, sharded in result.items() if name.startswith("transformer.h.0."))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["learner.aligned_blocks=all"], "nothing to shard"),
        (["learner.aligned_blocks=2"], "nothing to shard"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(words, overrides, message):
    recipe = words_recipe("arm=onehot", "learner.shard=true", *overrides)
    with pytest.raises(UserError, match=message):
        new_step(recipe, build(recipe, words))


def test_a_learner_with_a_moving_average_is_not_shared_out(pictures):
    recipe = pictures_recipe("arm=plain", "learner.shard=true")
    with pytest.raises(UserError, match="moving average"):
        new_step(recipe, build(recipe, pictures["dino"]))


def trained(recipe, folder):
    train_one(recipe, folder, lambda record, fraction: None)
    return load_file(folder / "model" / "model.safetensors") if distributed.rank() == 0 else None


def refused(recipe, folder):
    with pytest.raises(UserError) as caught:
        trained(recipe, folder)
    return str(caught.value)


@pytest.mark.parametrize("step", ["writing", "RunFolder"])  # a lock; a tracker without an account
def test_what_the_first_process_is_refused_ends_all_of_them(words, tmp_path, monkeypatch, step):
    def refuse(*given, **named):
        raise user_error("--out", "not here")

    monkeypatch.setattr(Language, "load", lambda self, recipe: words)
    monkeypatch.setattr(launch, step, refuse)
    recipe = words_recipe("arm=onehot")
    assert together(2, refused, recipe, tmp_path / "out") == ["--out: not here"] * 2


def without_room(recipe, folder):
    with pytest.raises(OSError, match="No space left") as caught:
        trained(recipe, folder)
    return type(caught.value).__name__


@pytest.mark.parametrize("step", ["RunFolder", "write_manifest"])  # at the beginning, at the end
def test_a_disk_that_is_full_for_the_first_process_ends_all_of_them(
    words, tmp_path, monkeypatch, step
):
    def full(*given, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Language, "load", lambda self, recipe: words)
    monkeypatch.setattr(launch, step, full)
    recipe = words_recipe("arm=onehot", "budget.steps=1")
    assert together(2, without_room, recipe, tmp_path / "out") == ["OSError"] * 2


def test_what_was_trained_in_shards_is_saved_whole(words, tmp_path, monkeypatch):
    monkeypatch.setattr(Language, "load", lambda self, recipe: words)
    recipe = words_recipe(
        "arm=token_weights",
        "learner.shard=true",
        "budget.steps=4",
        "checkpoint.every=2",
        "evaluate.answer=([0-9]+)",
        "evaluate.every=2",
        "checkpoint.keep_best=test/nll",
    )
    one = trained(recipe, tmp_path / "one")
    two = together(2, in_a_process, recipe, tmp_path / "two")[0]
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == {
        n: s for n, (s, _) in two.items()
    }
    for name, (_, values) in two.items():
        assert values == pytest.approx(one[name].flatten().tolist(), rel=1e-5, abs=1e-8)


def test_a_designer_is_saved_with_what_each_process_remembers(words, tmp_path, monkeypatch):
    monkeypatch.setattr(Language, "load", lambda self, recipe: words)
    recipe = words_recipe("arm=field", "designer.replay=2", "budget.steps=2")
    together(2, in_a_process, recipe, tmp_path)
    mine, its = torch.load(tmp_path / "designer" / "state.pt", weights_only=True)["remembered"]
    assert len(mine) == len(its) == 1
    assert mine[0]["hidden"].shape == its[0]["hidden"].shape and not mine[0]["hidden"].equal(
        its[0]["hidden"]
    )


def in_a_process(recipe, folder):
    result = trained(recipe, folder) or {}
    return {
        name: (tuple(tensor.shape), tensor.flatten().tolist()) for name, tensor in result.items()
    }


def gone_on_with(recipe, materials, folder):
    checkpoints = CheckpointManager(folder, keep_last=9)
    _, state = checkpoints.newest()
    return ran(recipe, materials, resume=state)


def kept(recipe, materials, folder):
    return ran(recipe, materials, checkpoints=CheckpointManager(folder, keep_last=9))


@pytest.mark.parametrize("shard", ["false", "true"])
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_run_goes_on_on_another_number_of_processes(words, tmp_path, before, after, shard):
    recipe = words_recipe("arm=token_weights", "budget.steps=8", f"learner.shard={shard}")
    part = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"steps": 4})})
    whole = ran(recipe, words)
    on(before, kept, part, words, tmp_path)
    rest = on(after, gone_on_with, recipe, words, tmp_path)[0]
    assert rest["loss"] == pytest.approx(whole["loss"][4:], rel=1e-6)
    assert apart(rest["weights"], whole["weights"]) < 1e-4


@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=token_weights"],
        ["arm=token_weights", "learner.shard=true"],
        ["arm=field", "value.meta_period=1", "designer.replay=3", "designer.updates=3"],
    ],
    ids=["whole", "shards", "replay"],
)
def test_two_processes_go_on_bit_for_bit_each_with_its_own_random_numbers_and_memory(
    words, tmp_path, overrides
):
    recipe = words_recipe("budget.steps=5", "learner.config.resid_pdrop=0.1", *overrides)
    part = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"steps": 3})})
    whole = together(2, ran, recipe, words)
    together(2, kept, part, words, tmp_path)
    rest = together(2, gone_on_with, recipe, words, tmp_path)
    assert [each["loss"] for each in rest] == [each["loss"][3:] for each in whole]
    assert [each["weights"] for each in rest] == [each["weights"] for each in whole]


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_shards_and_without(words, tmp_path, before, after):
    steps = {1: "learner.shard=false", 2: "learner.shard=true"}
    recipes = {n: words_recipe("arm=token_weights", shard) for n, shard in steps.items()}
    budget = recipes[before].budget.model_copy(update={"steps": 4})
    whole = ran(recipes[1], words)
    on(before, kept, recipes[before].model_copy(update={"budget": budget}), words, tmp_path)
    rest = on(after, gone_on_with, recipes[after], words, tmp_path)[0]
    assert rest["loss"] == pytest.approx(whole["loss"][4:], rel=1e-6)
    assert apart(rest["weights"], whole["weights"]) < 1e-4


def by_the_clock(recipe, materials):
    """Weights after steps whose batches each process waits for as long as its rank says."""
    run = Run(recipe, build(recipe, materials), step0={})
    run.start()
    for _ in range(3):
        run.agree_on_end()
        batch = run.next_batch()
        run.state.spent.add(seconds=100.0 * distributed.rank())
        run.step(batch)
    return [p.detach().tolist() for p in run.parts.learner.model.parameters()]


def test_processes_with_other_waits_take_the_same_step_under_a_budget_in_seconds(words):
    recipe = words_recipe("arm=onehot", "budget.seconds=1000")
    one, other = together(2, by_the_clock, recipe, words)
    same = one == other
    assert same


def on(world, function, *arguments):
    return [function(*arguments)] if world == 1 else together(world, function, *arguments)


def test_a_batch_that_cannot_be_shared_is_refused(words):
    with pytest.raises(
        AssertionError, match=r"data\.batch_size: 3 ranks cannot share a batch evenly"
    ):
        together(3, ran, words_recipe("arm=onehot"), words)


def found_by(folder):
    try:
        return CheckpointManager(folder / str(distributed.rank())).newest()[0]
    except UserError as error:
        return str(error)


def test_a_run_folder_that_not_all_see_is_named(tmp_path):
    CheckpointManager(tmp_path / "0").save(3, {"step": 3})
    result = together(2, found_by, tmp_path)
    assert (
        result[0] == 3
        and "process 1 on" in result[1]
        and str(tmp_path / "1" / "step-0000003") in result[1]
    )


@pytest.mark.parametrize("world", [2, 4])
def test_pictures_look_the_same_however_they_are_shared_out(pictures, world):
    recipe = pictures_recipe()
    crop = MultiCrop(recipe.learner.crops)

    whole = next(_stream(recipe, pictures["dino"], 0))
    views = crop(whole)
    for rank in range(world):
        stream = _stream(recipe, pictures["dino"], 0, rank=rank, world=world)
        part = next(stream)
        assert part.names == whole.names[rank::world]
        result = crop(part)
        for mine, all_of_them in zip(
            (*result.global_views, *result.local_views),
            (*views.global_views, *views.local_views),
            strict=True,
        ):
            torch.testing.assert_close(mine, all_of_them[rank::world], rtol=1e-5, atol=1e-5)


def test_a_stream_of_pictures_refuses_uneven_parts(pictures):

    with pytest.raises(UserError, match="3 ranks cannot share"):
        _stream(pictures_recipe(), pictures["dino"], 0, world=3)
