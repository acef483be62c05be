"""How a row is tokenised: one rule for stream, feedback, evaluation and generation.

A pretrained model was trained on whole texts. Prompt and text are therefore tokenised together, and
the predicted tokens start where the prompt's own tokens end: ``tokens(prompt) + tokens(text)``
would put a token boundary where the tokenizer never puts one (a separate space before a word, for
example), and cost a real model up to 0.1 nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from vpretrain.system.errors import Problem, UserError, user_error

if TYPE_CHECKING:
    from vpretrain.language.data.rows import Row

ROWS_PER_CALL = 1_000
"""Rows in one call of the tokenizer: enough for its threads, and few enough to hold twice in
memory."""


class Layout:
    """A tokenizer and the rule by which it turns rows into tokens.

    A document is ``begin + tokens(prompt + text) + [end]``. ``begin`` is what the tokenizer itself
    puts before a text: a BOS, or nothing. The prompt's tokens are those it has before a word,
    whatever the text, so that a prompt for generation ends as prompts do in training. If the text
    begins inside the prompt's last token, that token is predicted.

    A conversation is written by the tokenizer's chat template, which brings its own beginning, and
    the assistant's last answer is predicted.

    Args:
        tokenizer: any ``transformers`` tokenizer with an end token.
        parse_special_tokens: whether control tokens written in rows (``<|endoftext|>``) are read as
            such; otherwise they are tokenised like any other text.
        skip: leave out conversations that the chat template cannot write, rather than raise.

    Attributes:
        refused: the problems of conversations that were left out.
        begin: token ids before every document that is not a conversation.
        end: id of the end token.

    Raises:
        UserError: the tokenizer has no end token.
    """

    def __init__(
        self, tokenizer: Any, *, parse_special_tokens: bool = False, skip: bool = False
    ) -> None:
        end = tokenizer.eos_token_id
        if not isinstance(end, int):
            message = "its tokenizer has no end token (eos), and without one no document ends: set "
            message += "tokenizer.eos_token and save_pretrained() it into the model's folder"
            accepted = "a model whose tokenizer has an eos_token"
            raise user_error("learner.model", message, value=_named(tokenizer), accepted=accepted)
        self.tokenizer, self.end = tokenizer, end
        self.parse_special_tokens, self.skip = parse_special_tokens, skip
        self.refused: list[Problem] = []
        self.begin = _begin(tokenizer)
        self._control = _control_tokens(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id of the tokenizer."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def documents(self, rows: Sequence[Row]) -> Iterator[tuple[Row, list[int], int, bool]]:
        """Yields for every row: the row, its token ids without the end token, how many of these
        belong to the beginning and the prompt, and whether these are all tokens of the prompt alone
        (false if the text begins inside the prompt's last token).

        Raises:
            UserError: the chat template cannot write a conversation, or not its answer.
        """
        for start in range(0, len(rows), ROWS_PER_CALL):
            some, written = self._writable(rows[start : start + ROWS_PER_CALL])
            wholes = self._tokens([(prompt + text, chat) for prompt, text, chat in written])
            asked = [(prompt, chat) for prompt, _, chat in written if prompt]
            prompts = iter(self._prompts(asked))
            for row, (raw, _), (prompt, _, chat) in zip(some, wholes, written, strict=True):
                ids = self._spelled(raw, chat)
                alone = next(prompts) if prompt else []
                given = _common(alone, ids)
                natural = given == len(alone)
                begun = self._begun(ids, chat)
                yield row, begun, given + len(begun) - len(ids), natural

    def _writable(self, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[str, str, bool]]]:
        """The rows that can be written, and what :meth:`written` makes of them."""
        some, written = [], []
        for row in rows:
            try:
                written.append(self.written(row))
            except UserError as error:
                if not self.skip or error.problems[0].where != row.origin:
                    raise
                self.refused += error.problems
            else:
                some.append(row)
        return some, written

    def prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        """Token ids of each row's beginning and prompt; raises like :meth:`documents`."""
        asked = [(prompt, chat) for prompt, _, chat in map(self.written, rows)]
        tokens = self._prompts(asked)
        return [self._begun(ids, chat) for ids, (_, chat) in zip(tokens, asked, strict=True)]

    def _begun(self, ids: list[int], chat: bool) -> list[int]:
        """The ids after ``begin``, which a chat template or control tokens may already contain."""
        return ids if chat or ids[: len(self.begin)] == self.begin else [*self.begin, *ids]

    def _prompts(self, asked: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of prompts (each with whether a chat template wrote it) as before a word.

        These are not the tokens of the prompt alone: tokenizers split white space at the end of a
        text differently than before a word. Trailing spaces are left to the text, since its first
        word absorbs them.
        """
        # A word begins at a letter after white space, and elsewhere at a space.
        begun = [(text if text[-1:].isspace() else f"{text} ", chat) for text, chat in asked]
        one = self._tokens([(f"{text}a", chat) for text, chat in begun])
        if self.tokenizer.is_fast:
            prompts = [
                ids[: encoding.char_to_token(len(text))]
                for (text, _), (ids, encoding) in zip(begun, one, strict=True)
            ]
        else:
            # Without offsets, the prompt is what two tokenisations with different words share.
            other = self._tokens([(f"{text}I", chat) for text, chat in begun])
            pairs = [(a, b) for (a, _), (b, _) in zip(one, other, strict=True)]
            if any(a == b for a, b in pairs):
                raise _no_offsets(self.tokenizer)
            prompts = [a[: _common(a, b)] for a, b in pairs]
        return [
            self._spelled(self._without_spaces(ids) if text.endswith(" ") else ids, chat)
            for (text, chat), ids in zip(begun, prompts, strict=True)
        ]

    def _without_spaces(self, ids: list[int]) -> list[int]:
        """The ids without trailing tokens that consist of spaces alone."""
        end = len(ids)
        while end and not self.tokenizer.convert_ids_to_tokens(ids[end - 1]).strip("Ġ▁ "):
            end -= 1
        return ids[:end]

    def _tokens(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[list[int], Any]]:
        """Token ids of texts (each with whether a chat template wrote it), and the encoding with
        their offsets (None for a slow tokenizer)."""
        tokens: list[tuple[list[int], Any]] = [([], None)] * len(texts)
        for chat in (False, True):
            places = [at for at, (_, of_chat) in enumerate(texts) if of_chat == chat]
            if not places:
                continue
            parse = chat or self.parse_special_tokens
            encoded = self.tokenizer(
                [texts[at][0] for at in places],
                add_special_tokens=False,
                split_special_tokens=not parse,
                return_attention_mask=False,
                verbose=False,  # no length warning: the caller bounds the length
            )
            encodings = encoded.encodings if self.tokenizer.is_fast else repeat(None)
            for at, ids, encoding in zip(places, encoded["input_ids"], encodings, strict=False):
                tokens[at] = ids, encoding
        return tokens

    def _spelled(self, ids: list[int], chat: bool) -> list[int]:
        """The ids with control tokens spelled out in characters, unless they are parsed: a
        vocabulary that holds their names as words (WordLevel, Unigram) still finds them in text."""
        if chat or self.parse_special_tokens or self._control.keys().isdisjoint(ids):
            return ids
        return list(chain.from_iterable(self._control.get(token, (token,)) for token in ids))

    def written(self, row: Row) -> tuple[str, str, bool]:
        """Prompt and text to tokenise, and whether a chat template wrote them."""
        if row.conversation is None:
            return row.prompt, row.text, False
        messages, tools = row.conversation["messages"], row.conversation.get("tools")
        if not getattr(self.tokenizer, "chat_template", None):
            raise _no_template(self.tokenizer, row)
        if not self.parse_special_tokens:
            self._check_controls(messages, row)
        prompt = self._rendered(messages[:-1], row, tools=tools, add_generation_prompt=True)
        whole = self._rendered(messages, row, tools=tools)
        answer = whole.removeprefix(prompt)
        last_word = str(messages[-1]["content"]).split()[-1:]
        if not whole.startswith(prompt) or not all(word in answer for word in last_word):
            part = "the assistant's answer" if whole.startswith(prompt) else "the same prompt"
            message = f"the chat template does not write {part} once the conversation is answered, "
            message += "so that there is no assistant's part to predict"
            accepted = "a chat template that continues its generation prompt with the answer, or "
            accepted += "rows of prompt and solution without `format: chat`"
            raise user_error(row.origin, message, value=prompt[-80:], accepted=accepted)
        end = self.tokenizer.eos_token
        # Every document gets an end token later; one from the template would be a second.
        ended = answer.rstrip()
        return prompt, ended.removesuffix(end) if ended.endswith(end) else answer, True

    def _rendered(self, messages: Sequence[Any], row: Row, **options: Any) -> str:
        try:
            write = self.tokenizer.apply_chat_template
            return str(write(list(messages), tokenize=False, **options))
        except UserError:
            raise
        except Exception as error:  # templates may raise anything
            message = f"the tokenizer's chat template cannot write this conversation: {error}"
            turns = ", ".join(str(each.get("role")) for each in messages)
            accepted = "roles and an order of turns that the template knows"
            raise user_error(row.origin, message, value=turns, accepted=accepted) from error

    def _check_controls(self, messages: Sequence[Any], row: Row) -> None:
        names = [self.tokenizer.convert_ids_to_tokens(token) for token in self._control]
        for message in messages:
            if name := next((name for name in names if name in str(message.get("content"))), None):
                problem = "a message holds a control token, which the chat template would let end "
                accepted = "messages without control tokens, or data.parse_special_tokens=true"
                problem += "a turn: take it out of the row"
                raise user_error(row.origin, problem, value=name, accepted=accepted)


def _begin(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text."""
    bare, whole = (
        tokenizer("a", add_special_tokens=added, verbose=False)["input_ids"]
        for added in (False, True)
    )
    if not bare:
        return whole[:1] if whole[:1] == [tokenizer.bos_token_id] else []
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next((at for at in starts if whole[at : at + len(bare)] == bare), 0)]


def _control_tokens(tokenizer: Any) -> dict[int, tuple[int, ...]]:
    """Ids of control tokens, each with its name as ids of single characters."""
    added = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = tokenizer.unk_token_id
    spelled = {}
    for token in (added | set(tokenizer.all_special_ids)) - {unknown}:
        letters = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
        spelled[token] = tuple(letter for letter in letters if letter is not None)
    return spelled


def _named(tokenizer: Any) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _no_template(tokenizer: Any, row: Row) -> UserError:
    return user_error(
        "learner.tokenizer",
        f"{row.origin} is a conversation, and this tokenizer has no chat template; set its "
        "chat_template and save_pretrained() it, or take a tokenizer of a chat model",
        value=_named(tokenizer),
        accepted="a tokenizer with a chat template, or rows without `format: chat`",
    )


def _no_offsets(tokenizer: Any) -> UserError:
    return user_error(
        "learner.tokenizer",
        "this tokenizer gives no offsets, and writes different words as the same tokens, so that "
        "the end of a prompt cannot be found: convert it to a fast tokenizer (tokenizer.json)",
        value=type(tokenizer).__name__,
        accepted="a tokenizer of the tokenizers library",
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    if b[: len(a)] == a:
        return len(a)
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
