"""A data collator's batches as the core's."""

import copy

import pytest
import torch
from transformers import DataCollatorWithFlattening

from tests.integrations.conftest import TOKENIZER
from vpretrain.integrations.batches import token_batch
from vpretrain.language.data.batch import padded
from vpretrain.language.data.rows import Document
from vpretrain.system.errors import UserError


def test_a_padded_batch_is_the_cores_whatever_side_the_padding_is_on():
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    documents = [Document(row, [at > 1 for at in range(len(row))], "", "") for row in rows]
    expected = padded(documents, pad_id=0)
    for side in ("left", "right"):
        tokenizer = copy.deepcopy(TOKENIZER)
        tokenizer.padding_side = side
        inputs = dict(tokenizer.pad({"input_ids": rows}, return_tensors="pt"))
        labels = inputs["input_ids"].clone()
        for prompt in (5, 6, 10, 11):
            labels[labels == prompt] = -100
        result = token_batch(
            {**inputs, "labels": labels}
        )  # padding has the label 0: the mask alone says what it is
        for name in ("input_ids", "predicted", "position_ids", "document"):
            torch.testing.assert_close(
                getattr(result, name), getattr(expected, name), msg=f"{name}, padded {side}"
            )
        assert len(result.documents) == 2


def test_packed_rows_are_told_apart_by_position():
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]),
        "labels": torch.tensor([[5, 6, 7, 8, 9, 10]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
    }
    batch = token_batch(inputs)
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.document.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert batch.predicted.tolist() == [[False, True, True, False, True, True]]
    for name, wrong in (("labels", None), ("position_ids", torch.arange(6))):
        with pytest.raises(UserError, match=f"data_collator: {name}"):
            token_batch({**inputs, name: wrong})


def test_packed_rows_that_only_a_kernel_tells_apart_are_refused():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    marked = DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True)
    with pytest.raises(UserError, match=r"(?s)position_ids.*got +cu_seq_lens_k, cu_seq_lens_q"):
        token_batch(marked(rows))
    numbered = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}
    with pytest.raises(UserError, match=r"(?s)position_ids.*got +attention_mask that numbers"):
        token_batch({**numbered, "attention_mask": torch.tensor([[1, 1, 2, 2]])})
    both = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    assert len(token_batch(both(rows)).documents) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_that_are_other_tokens_are_refused(side):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.padding_side = side
    inputs = dict(
        tokenizer.pad({"input_ids": [[5, 6, 7, 8, 9], [10, 11, 12]]}, return_tensors="pt")
    )
    labels = inputs["input_ids"].clone()
    token_batch({**inputs, "labels": labels})
    labels[0, 2] = 40  # the input is corrupted here, and this was to be restored
    with pytest.raises(
        UserError, match=r"(?s)data_collator: labels: .*corrupted inputs.*mlm=False"
    ):
        token_batch({**inputs, "labels": labels})
