"""Language, put together: from a recipe to the parts of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpretrain.config.arms import Arm
from vpretrain.language import posttraining
from vpretrain.language.card import write_card
from vpretrain.language.data.amounts import repeated
from vpretrain.language.data.rows import Document, Encoded, Row, documents_hash, encode
from vpretrain.language.data.stream import CutDocuments, JoinedStreams, Source, Stream
from vpretrain.language.data.texts import (
    Texts,
    documents_of,
    notices,
    read,
    refuse_shared,
)
from vpretrain.language.designer_transfer import designer_for
from vpretrain.language.evaluation.in_run import benchmarks_of, evaluate, held_out_loss
from vpretrain.language.explain.figures import explain_language
from vpretrain.language.feedback.likelihood import shuffled
from vpretrain.language.feedback.passes import batch_tokens
from vpretrain.language.feedback.tasks import encode_tasks, feedback_from
from vpretrain.language.fit import (
    aligned_of,
    check_fit,
    too_large,
    unfit_tokenizer,
    unfit_window,
)
from vpretrain.language.learner import lora
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.learner.layout import refusals
from vpretrain.language.learner.loading import (
    checkpoint_activations,
    load_model,
    load_tokenizer,
    skeleton,
)
from vpretrain.language.materials import Materials
from vpretrain.language.prepare import cached, locate, make
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.feedback import SINGLE
from vpretrain.language.recipe.rows import Part
from vpretrain.language.steering.arms import ARMS, DEMO, Site, check_alignment, check_control
from vpretrain.language.steering.domains import ALL, domains_of, matched
from vpretrain.method.reliability import Reliability
from vpretrain.models.checkpoint_cache import is_model
from vpretrain.models.loading import named
from vpretrain.run.controls import controlled, seed_of_task, shuffles_labels
from vpretrain.run.parts import FEW_ROWS, Checked, Lighter, Modality, Parts, Reads
from vpretrain.run.resources import disk_shortage
from vpretrain.run.train import Result
from vpretrain.system import devices, distributed
from vpretrain.system.errors import Problem, UserError, collecting, renamed
from vpretrain.system.phases import warn_once

if TYPE_CHECKING:
    from peft import PeftModel


class Language(Modality[LanguageRecipe, Materials]):
    """The language modality."""

    schema = LanguageRecipe
    demo: Sequence[str] = DEMO

    def __init__(self) -> None:
        self.arms: Mapping[str, Arm] = ARMS.all

    def load(self, recipe: LanguageRecipe) -> Materials:
        """Reads text, finds (or makes) the learner's checkpoint, and tokenises."""
        return self._materials(recipe, read(recipe))

    def _materials(self, recipe: LanguageRecipe, texts: Texts) -> Materials:
        shapes = skeleton(recipe)
        followers = ARMS.section_of(recipe).followers
        if problems := refusals(shapes, packing=recipe.data.packing) or too_large(
            recipe, shapes, followers
        ):
            raise UserError(*problems)
        location = None if recipe.learner.config is not None else locate(recipe, texts)
        tokenizer = load_tokenizer(recipe.learner, location)
        longest, parse = recipe.data.feedback.max_tokens, recipe.data.parse_special_tokens
        skip = recipe.data.on_bad_row == "skip"
        counts: dict[str, Encoded] = {}

        def documents(name: str, rows: Sequence[Row], most: int) -> list[Document]:
            encoded, counts[name] = encode(
                rows, tokenizer, max_tokens=most, parse_special_tokens=parse, skip=skip
            )
            return encoded

        sources = []
        for source in recipe.data.stream:
            stored, counts[f"stream/{source.name}"] = documents_of(
                source, texts.stream[source.name], tokenizer, recipe.data
            )
            sources.append(Source(source.name, stored, source.weight))
        tasks, of_tasks = encode_tasks(
            recipe.data.feedback, texts.tasks, tokenizer, parse_special_tokens=parse, skip=skip
        )
        counts |= {
            name if name == SINGLE else f"feedback/{name}": count
            for name, count in of_tasks.items()
        }
        evaluation = documents(recipe.evaluate.split, texts.evaluation, longest)
        also = {name: documents(name, rows, longest) for name, rows in texts.also.items()}
        of_feedback = [document for task in tasks.values() for document in task.documents]
        refuse_shared(
            texts,
            of_feedback,
            lambda: chain.from_iterable(source.documents for source in sources),
            {recipe.evaluate.split: evaluation, **also},
            {*tokenizer.all_special_ids},
        )
        lines = [*notices(texts, counts, recipe.data), *repeated(recipe, counts)]
        for line in lines:
            warn_once(line)
        return Materials(
            location,
            tokenizer,
            texts,
            sources,
            tasks,
            evaluation,
            also,
            counts,
            benchmarks_of(recipe),
            lines,
        )

    def check(self, recipe: LanguageRecipe) -> Checked:
        """Reads the data, and loads tokenizer and model where they are there already; makes
        nothing.
        """
        problems: list[Problem] = []
        section, texts, checked = recipe.learner, None, Checked(problems)
        named_model = section.prepare is None or section.model is not None
        arm = recipe.designer
        with collecting(problems):
            arm = ARMS.section_of(recipe)
        with collecting(problems):
            texts = read(recipe)
        with collecting(problems):
            shapes = skeleton(recipe)  # so that a model that does not fit is never loaded
            problems += refusals(shapes, packing=recipe.data.packing)
            problems += too_large(recipe, shapes, arm.followers)
            problems += disk_shortage(shapes, recipe.checkpoint, followers=arm.followers)
            problems += unfit_window(recipe, shapes.config)
            if named_model:
                location = None if section.model is None else named(section.model)
                problems += unfit_tokenizer(load_tokenizer(section, location), shapes.config)
            if section.activation_checkpointing:
                checkpoint_activations(shapes)
            aligned_of(section, shapes)
            if (count := arm.most_candidates) > (most := shapes.config.vocab_size):
                message = "there are not so many tokens in the learner's vocabulary"
                problems.append(Problem("designer.candidates", str(count), f"1 to {most}", message))
        with collecting(problems):
            if texts and not problems and (named_model or is_model(cached(recipe, texts))):
                materials = self._materials(recipe, texts)
                warnings = [line for line in materials.notices if line.startswith("warning:")]
                checked = replace(checked, warnings=warnings)
                parts = self.build(recipe, materials)
                checked = replace(checked, parts=parts, reads=_reads(recipe, materials))
        return checked

    def prepare(self, recipe: LanguageRecipe, out: Path | None) -> Path:
        """Tokenizer and model from the recipe's stream, as ``learner.prepare`` says."""
        texts = read(recipe)
        return make(recipe, texts, out or cached(recipe, texts))

    def build(self, recipe: LanguageRecipe, materials: Materials) -> Parts:
        """Fresh learner, designer, feedback and stream for the recipe's arm and seed."""
        learner, adapted = _learner(recipe, materials)
        data, arm, control = recipe.data, ARMS.named(recipe.arm), ARMS.control_of(recipe)
        section = ARMS.section_of(recipe)
        check_control(section, recipe.arm, control)
        check_alignment(section, recipe.alignment)
        rows = materials.feedback
        if shuffles_labels(control):
            rows = shuffled(rows, recipe.seed)
        sources = materials.sources
        if arm.trains_on == "feedback":
            cut = CutDocuments(rows, data.window_tokens)
            sources = [Source("feedback", cut, 1.0)]
        domains = {name: task.sources for name, task in data.feedback.named().items()}
        tasks = feedback_from(
            data.feedback,
            materials.tasks,
            materials.tokenizer,
            pad_id=materials.pad_id,
            seed=recipe.seed,
            wrong_labels=shuffles_labels(control),
            around=lambda name, task: controlled(
                task,
                control,
                memory=recipe.value.memory,
                seed=seed_of_task(recipe.seed, name, materials.tasks),
            ),
        )
        site = Site(
            learner,
            recipe.seed,
            Reliability(shrink=recipe.value.shrink, unit=recipe.value.unit),
            rows,
            materials.tokenizer,
            recipe.learner.learning_rate,
            recipe.value.meta_period,
        )
        meta_domains = _by_domain(recipe, materials)
        matched_learner, feedback = matched(learner, tasks, domains, equal=bool(meta_domains))
        return Parts(
            learner=matched_learner,
            designer=designer_for(section, site, recipe.learner, materials.tokenizer),
            feedback=feedback,
            stream=_stream(
                recipe, materials, sources, data.batch_size, data.window_tokens, recipe.seed
            ),
            meta_batches=_meta_batches(recipe, materials, meta_domains),
            alignment_groups=tuple(f"{domain}/" for domain in meta_domains),
            evaluate=partial(evaluate, recipe, materials, learner),
            held_out_loss=partial(held_out_loss, recipe, materials, learner),
            held_out_batch=partial(held_out_loss, recipe, materials, learner),
            save=partial(_save, recipe, learner, adapted, materials.tokenizer),
            after=posttraining.after(
                recipe, learner.model, materials.tokenizer, materials.texts.posttraining
            ),
            on_stream=posttraining.on_stream(recipe.arm),
            followers=section.followers,
        )

    def data_hashes(self, materials: Materials) -> dict[str, str]:
        """Hashes of the stream's sources, the feedback's tasks, and what is evaluated on, in the
        learner's tokens.
        """
        sets: dict[str, Iterable[Document]] = {
            f"stream/{source.name}": source.documents for source in materials.sources
        }
        sets |= {f"feedback/{name}": task.documents for name, task in materials.tasks.items()}
        sets |= {"evaluation": materials.evaluation} | {
            f"evaluation/{name}": own for name, own in materials.also.items()
        }
        return {name: documents_hash(documents) for name, documents in sets.items()}

    def explain(
        self, recipe: LanguageRecipe, folder: Path, *, documents: int, out: Path
    ) -> dict[str, Any]:
        return explain_language(self, recipe, folder, documents=documents, out=out)

    def card(
        self, recipe: LanguageRecipe, materials: Materials, result: Result, folder: Path
    ) -> None:
        """Writes the model card of a finished run into its model folder."""
        write_card(
            folder, recipe, result, location=materials.location, feedback=materials.texts.feedback
        )


_LIGHT_WINDOW, _LIGHT_FEEDBACK = 128, 8
"""Tokens of a row and rows of a feedback batch that show on a slow machine that all works."""


def _reads(recipe: LanguageRecipe, materials: Materials) -> Reads:
    """Tokens of a meta step's feedback and of an evaluation, answers that are generated aside."""
    feedback = recipe.data.feedback
    of_meta_step, of_lighter = 0, 0
    for name, task in materials.tasks.items():
        lengths, size = sorted(len(each.ids) for each in task.documents), feedback.batch_of(name)
        fixed = feedback.named()[name].batch_size is not None
        few = size if fixed else min(size, _LIGHT_FEEDBACK)
        of_meta_step += feedback.batches * batch_tokens(lengths, size, devices.device())
        of_lighter += feedback.batches * batch_tokens(lengths, few, devices.device())
    held_out = [materials.evaluation, *materials.also.values()]
    tokens = sum(_padded_tokens(each, recipe.evaluate.batch_size) for each in held_out)
    split, count = recipe.evaluate.split, sum(map(len, held_out))
    can = isinstance(recipe.data.evaluation[split], Part) and count > FEW_ROWS
    fewer = f"data.evaluation.{split}.rows={FEW_ROWS}" if can else ""
    lighter = _lighter(recipe, of_lighter / max(1, of_meta_step))
    return Reads(of_meta_step, tokens, count, fewer, lighter)


def _padded_tokens(documents: Sequence[Document], size: int) -> int:
    """In batches of this size, the longest first, each row as long as the longest of its batch."""
    lengths = sorted((len(each.ids) for each in documents), reverse=True)
    return sum(lengths[at] * min(size, len(lengths) - at) for at in range(0, len(lengths), size))


def _lighter(recipe: LanguageRecipe, of_feedback: float) -> Lighter | None:
    """Shorter rows, since a batch keeps its count of them to choose from, and less feedback."""
    data, overrides, share = recipe.data, [], 1.0
    if data.window_tokens > _LIGHT_WINDOW:
        share = _LIGHT_WINDOW / data.window_tokens
        overrides.append(f"data.window_tokens={_LIGHT_WINDOW}")
    if data.feedback.batch_size > _LIGHT_FEEDBACK and of_feedback < 1:
        overrides.append(f"data.feedback.batch_size={_LIGHT_FEEDBACK}")
    return Lighter(" ".join(overrides), share, of_feedback) if overrides else None


def _learner(
    recipe: LanguageRecipe, materials: Materials
) -> tuple[CausalLearner, PeftModel | None]:
    """The learner, and PEFT's view of its model where adapters train."""
    section = recipe.learner
    model = load_model(section, materials.location, recipe.seed)
    model = model.to(devices.device())
    check_fit(recipe, model, materials)
    adapted = None
    if section.lora is not None:
        adapted = lora.attach(model, section.lora, base=materials.location, seed=recipe.seed)
    if section.activation_checkpointing:
        checkpoint_activations(model)
    aligned = aligned_of(section, model)
    autocast = devices.autocast_dtype(section.dtype)
    packed = recipe.data.packing
    return CausalLearner(model.train(), aligned, autocast=autocast, packed=packed), adapted


def _stream(
    recipe: LanguageRecipe,
    materials: Materials,
    sources: Sequence[Source],
    batch_size: int,
    window_tokens: int,
    seed: int | str,
) -> Stream:
    """Batches of the learner's kind, one process's part of them."""
    return Stream(
        sources,
        batch_size=batch_size,
        window_tokens=window_tokens,
        seed=seed,
        pad_id=materials.pad_id,
        packing=recipe.data.packing,
        rank=distributed.rank(),
        world=distributed.world(),
        loss_mean=recipe.learner.loss_mean,
    )


def _by_domain(recipe: LanguageRecipe, materials: Materials) -> dict[str, list[Source]]:
    """The stream's sources by the domain that the feedback's tasks make of them; empty where the
    designer has no batch of each."""
    section, tasks = recipe.value.meta_batch, recipe.data.feedback.named()
    if section is None or not section.per_domain:
        return {}
    _, of_source = domains_of({name: task.sources for name, task in tasks.items()}, list(tasks))
    domains: dict[str, list[Source]] = {}
    for source in materials.sources:
        domains.setdefault(of_source.get(source.name, ALL), []).append(source)
    return domains


def _meta_batches(
    recipe: LanguageRecipe, materials: Materials, domains: Mapping[str, list[Source]]
) -> Stream | JoinedStreams | None:
    """What the designer learns from, where it has unlabeled batches of its own."""
    section = recipe.value.meta_batch
    if section is None:
        return None

    def stream(sources: Sequence[Source]) -> Stream:
        size, window = section.batch_size, section.window_tokens
        cut = [replace(each, documents=CutDocuments(each.documents, window)) for each in sources]
        seed = f"{recipe.seed}/meta/{section.seed}"
        return _stream(recipe, materials, cut, size, window, seed)

    with renamed({"data.batch_size": "value.meta_batch.batch_size"}):
        if domains:
            return JoinedStreams({name: stream(sources) for name, sources in domains.items()})
        return stream(materials.sources)


def _save(
    recipe: LanguageRecipe,
    learner: CausalLearner,
    adapted: PeftModel | None,
    tokenizer: Any,
    folder: Path,
) -> None:
    if adapted is None:
        learner.model.save_pretrained(folder)
    else:
        assert recipe.learner.lora is not None
        lora.save(adapted, folder, merge=recipe.learner.lora.merge)
    tokenizer.save_pretrained(folder)
