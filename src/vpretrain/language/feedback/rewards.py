"""Verifiable rewards: sampled answers scored by a checker, and the policy gradient over S.

Shapes: P prompts, k answers to each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vpretrain.language.data.batch import left_padded
from vpretrain.language.data.rows import Document, Row
from vpretrain.language.data.stream import Sampler
from vpretrain.language.evaluation.generation import check_positions, end_tokens
from vpretrain.language.feedback.checkers import (
    CHECKER_SECONDS,
    Checker,
    CheckerFault,
    reward_of,
)
from vpretrain.language.feedback.gradient import Sampled, log_probabilities, split
from vpretrain.language.feedback.passes import passes
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.method import vectors
from vpretrain.method.feedback import gradient_on_aligned
from vpretrain.method.roles import Gradient
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import UserError
from vpretrain.system.sampling import seed_of

SAMPLED_ROWS = 64
"""Number of answers generated in one batch."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Args:
        answers: k, answers per prompt, at least 2, since their rewards are compared.
        temperature: > 0; the policy is ``softmax(logits / temperature)``, without truncation.
        new_tokens: maximum length of an answer, end token included.
    """

    answers: int = 8
    temperature: float = 1.0
    new_tokens: int = 256


def leave_one_out(rewards: Tensor) -> Tensor:
    """Rewards ``[P, k]`` minus the mean of the other rewards of their row, which keeps the policy
    gradient unbiased."""
    k = rewards.shape[1]
    return _centred(rewards) * (k / (k - 1))


def group_normalised(rewards: Tensor) -> Tensor:
    """Rewards ``[P, k]`` minus their row's mean, divided by its standard deviation (GRPO, arXiv
    2402.03300); 0 in rows of equal rewards.

    Biased: prompts on which answers rarely differ count as much as those on which they often do.
    """
    centred = _centred(rewards)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / torch.where(spread > 0, spread, 1.0)


def _centred(rewards: Tensor) -> Tensor:
    """Rewards minus their row's mean, exactly 0 in rows of equal rewards: the mean's rounding error
    must not be normalised into a signal."""
    differ = rewards.amax(dim=1, keepdim=True) > rewards.amin(dim=1, keepdim=True)
    return torch.where(differ, rewards - rewards.mean(dim=1, keepdim=True), 0.0)


Baseline = Literal["leave_one_out", "group_normalised"]
BASELINES: Mapping[Baseline, Callable[[Tensor], Tensor]] = {
    "leave_one_out": leave_one_out,
    "group_normalised": group_normalised,
}


class Rewards(Sampled):
    """The policy gradient (REINFORCE) of minus the expected reward of sampled answers.

    The slow definition of one batch's ``g_down``, with ``log p(y)`` summed over the answer's tokens
    under the policy that sampled it::

        for prompt in batch:
            answers = k samples of the learner
            rewards = [checker(row, answer) for answer in answers]
            for answer, advantage in zip(answers, baseline(rewards)):
                g_down -= advantage * grad log p(answer | prompt) / (len(batch) * k)

    With ``leave_one_out`` its expectation is the gradient of ``-E[reward]``. Prompts whose answers
    all get the same reward contribute nothing, and are left out of the passes with gradients.

    Args:
        samplers: batches of documents, of which only the prompts are used; see :class:`Sampled`.
        rows: rows by the ``origin`` of their document, for the checker.
        tokenizer: the learner's tokenizer, with an end token.
        checker: computes the reward of an answer, any finite number.
        sampling: how answers are sampled.
        baseline: turns rewards into advantages, one of ``BASELINES``.
        seed: seed of the samples, which have their own generator; the global RNG is not used.
        where: dotted recipe key, for messages.
        checker_seconds: time limit of a call of the checker, after which the batch is skipped.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        rows: Mapping[str, Row],
        tokenizer: Any,
        checker: Checker,
        *,
        sampling: Sampling,
        baseline: Baseline,
        seed: int,
        where: str = "data.feedback",
        checker_seconds: float = CHECKER_SECONDS,
    ) -> None:
        super().__init__(samplers)
        self.checker_seconds = checker_seconds
        self.rows, self.tokenizer, self.checker = rows, tokenizer, checker
        self.sampling, self.baseline, self.seed, self.where = (
            sampling,
            BASELINES[baseline],
            seed,
            where,
        )
        self.longest_prompt = max(
            len(split(document)[0]) for sampler in samplers for document in sampler.documents
        )
        self.draws = 0
        self.earned_rewards: list[Tensor] = []

    def prepare(self, learner: CausalLearner) -> None:
        """Raises ``UserError`` like :func:`check_positions`: before the first step, since feedback
        may first be used after many (``value.start_step``)."""
        check_positions(
            learner.model,
            self.longest_prompt,
            self.sampling.new_tokens,
            f"{self.where}.new_tokens",
        )

    def gradients(self, learner: CausalLearner) -> list[Gradient]:
        """See :class:`Sampled`; raises like :meth:`prepare`."""
        self.prepare(learner)  # a resumed run, whose settings may have changed, does not prepare
        self.earned_rewards = []
        return super().gradients(learner)

    def gradient(self, learner: CausalLearner, documents: list[Document], pad_id: int) -> Gradient:
        """``g_down`` over S of one batch, with newly sampled answers to each prompt."""
        k = self.sampling.answers
        prompts = [split(document)[0] for document in documents for _ in range(k)]
        answers = self._answers(learner, prompts, pad_id)
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        asked = [self.rows[document.origin] for document in documents for _ in range(k)]
        rewards = torch.tensor(self._earned(asked, texts), dtype=torch.float64).view(-1, k)
        self.earned_rewards.append(rewards)
        drawn = [
            (_answered(row, prompt, answer), advantage)
            for row, prompt, answer, advantage in zip(
                asked, prompts, answers, self.baseline(rewards).flatten().tolist(), strict=True
            )
            if advantage
        ]

        def pieces() -> Iterator[Tensor]:
            for chunk in passes(drawn, lambda each: len(each[0].ids), learner.device):
                answered = [document for document, _ in chunk]
                log_p = log_probabilities(learner, answered, pad_id, self.sampling.temperature)
                advantages = log_p.new_tensor([advantage for _, advantage in chunk])
                yield -(log_p @ advantages) / len(prompts)

        return gradient_on_aligned(learner, pieces())

    def _answers(
        self, learner: CausalLearner, prompts: Sequence[list[int]], pad_id: int
    ) -> list[list[int]]:
        """One answer to each prompt, in order; prompts of similar lengths are batched together."""
        generator = torch.Generator(learner.device)
        generator.manual_seed(seed_of(f"{self.seed} rewards {self.draws}"))
        self.draws += 1
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), SAMPLED_ROWS):
            some = order[start : start + SAMPLED_ROWS]
            drawn = sample(
                learner,
                [prompts[at] for at in some],
                generator,
                temperature=self.sampling.temperature,
                new_tokens=self.sampling.new_tokens,
                end_ids=end_tokens(learner.model, self.tokenizer),
                pad_id=pad_id,
            )
            for at, answer in zip(some, drawn, strict=True):
                answers[at] = answer
        return answers

    def _earned(self, rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        """The reward of each answer."""
        error: Exception | None = None
        earned: list[float] = []
        try:
            for row, text in zip(rows, texts, strict=True):
                where = f"{self.where}.checker"
                earned.append(
                    reward_of(self.checker, row, text, seconds=self.checker_seconds, where=where)
                )
        except (CheckerFault, UserError) as caught:
            error = caught
        distributed.raise_on_all(error)
        return earned

    def metrics(self) -> dict[str, float]:
        """The mean ``reward`` of the answers, and ``informative``, the fraction of prompts whose
        answers get different rewards."""
        if not self.earned_rewards:
            return {}
        rewards = torch.cat(self.earned_rewards)
        differ = rewards.amax(dim=1) > rewards.amin(dim=1)
        return {"reward": float(rewards.mean()), "informative": float(differ.double().mean())}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.draws = int(state["draws"])


@torch.no_grad()
def sample(
    learner: CausalLearner,
    prompts: Sequence[list[int]],
    generator: torch.Generator,
    *,
    temperature: float,
    new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """One answer to each prompt, sampled token by token from ``softmax(logits / temperature)``.

    ``generate`` is not used: it would alter the distribution by the checkpoint's generation
    settings (top-k, repetition penalty, suppressed tokens), and the gradient would belong to
    another policy.

    Args:
        learner: the model, put into evaluation mode meanwhile.
        prompts: token ids, at least one each; they are left-padded, and positions count from 0 at
            the first token.
        generator: generator of the samples, on the learner's device.
        temperature: > 0.
        new_tokens: maximum length of an answer.
        end_ids: tokens that end an answer.
        pad_id: padding left of shorter prompts and after finished answers; no token of a prompt or
            an answer attends to it.

    Returns:
        Token ids of each answer, including its end token if it was sampled.
    """
    ids, mask = left_padded(prompts, pad_id=pad_id, device=learner.device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=learner.device)
    ends = torch.tensor(end_ids, device=learner.device)
    drawn: list[Tensor] = []
    past: Any = None
    with evaluating(learner.model), learner.computing():
        for _ in range(new_tokens):
            out = learner.anatomy.backbone(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            logits = learner.anatomy.finished(learner.anatomy.head(out.last_hidden_state[:, -1]))
            policy = torch.softmax(vectors.wide(logits) / temperature, dim=1)
            token = torch.multinomial(policy, 1, generator=generator)[:, 0]
            token = torch.where(done, pad_id, token)
            drawn.append(token)
            done |= torch.isin(token, ends)
            if done.all():
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return [_ended(answer, end_ids) for answer in torch.stack(drawn, dim=1).tolist()]


def _ended(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    """The answer up to its first end token, which it includes."""
    ends = (at for at, token in enumerate(answer, 1) if token in end_ids)
    return answer[: next(ends, len(answer))]


def _answered(row: Row, prompt: list[int], answer: list[int]) -> Document:
    predicted = [False] * len(prompt) + [True] * len(answer)
    return Document(prompt + answer, predicted, row.origin, row.source)
