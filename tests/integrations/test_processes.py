"""The drop-in on several processes: the run that one process would make, under the launcher that
people use.
"""

import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.integrations.conftest import TOKENIZER, tiny
from tests.integrations.test_examples import EXAMPLE
from tests.integrations.test_transformers import steered
from tests.reliability.processes import together
from vpretrain.run import checkpoint
from vpretrain.system import distributed

NETWORKS = {
    "field": {"replay": 2, "updates": 2, "learning_rate": 1e-3},
    "ascent": {"updates": 2, "learning_rate": 1e-3},
}
"""Keys of the arms that have a network."""


def trained(arm, folder, feedback, stream, empty=(), is_tied=False):
    """Losses, weights and metrics; the rows of ``empty`` have no label, and with two processes fall
    to the second.
    """
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # of the process that this one was forked from
    rows = [
        {**row, "labels": [-100] * len(row["input_ids"])} if place in empty else row
        for place, row in enumerate(stream)
    ]
    trainer = steered(
        folder,
        feedback,
        rows,
        model=tiny(tie_word_embeddings=is_tied),
        steering={"arm": arm, "estimator": "double_backward", **NETWORKS.get(arm, {})},
        max_steps=5,
        per_device_train_batch_size=4 // distributed.world(),
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=5,
    )
    trainer.data_collator = padded
    trainer.train()
    losses = [float(distributed.total(loss) / distributed.world()) for loss in trainer.losses]
    return losses, [p.detach().numpy() for p in trainer.model.parameters()], trainer.steered_metrics


def padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    rows = [
        {"labels": row["input_ids"], "attention_mask": [1] * len(row["input_ids"]), **row}
        for row in rows
    ]
    fill = {"input_ids": TOKENIZER.pad_token_id, "labels": -100, "attention_mask": 0}
    return {
        key: torch.tensor([row[key] + [pad] * (width - len(row[key])) for row in rows])
        for key, pad in fill.items()
    }


@pytest.mark.parametrize(
    ("arm", "is_tied"),
    [
        ("onehot", False),
        ("onehot", True),
        ("document_weights", False),
        ("ascent", False),
        ("weight_field", False),
    ],
)
def test_two_processes_make_the_run_of_one(arm, is_tied, tmp_path, feedback, stream, head):
    losses, weights, metrics = trained(arm, tmp_path / "one", feedback, stream, (), is_tied)
    first, second = together(2, trained, arm, tmp_path / "two", feedback, stream, (), is_tied)
    assert first[0] == second[0] == pytest.approx(losses, rel=1e-5)
    for a, b, c in zip(first[1], second[1], weights, strict=True):
        assert (a == b).all() and a == pytest.approx(c, abs=1e-4)
    assert first[2] == second[2] == pytest.approx(metrics, rel=1e-2, abs=1e-4)
    one, two = (
        checkpoint.load(tmp_path / name / "checkpoint-5" / "steering") for name in ("one", "two")
    )
    assert one.keys() == two.keys() and one["designer"].keys() == two["designer"].keys()


def test_where_one_process_has_nothing_to_predict_both_go_on(tmp_path, feedback, stream):
    """In the first batch, where the meta step was due, and in a later one."""
    first, second = together(
        2, trained, "token_weights", tmp_path, feedback, stream, (2, 3, 14, 15)
    )
    assert first[0] == second[0] and all(torch.tensor(first[0]).isfinite())
    assert all((a == b).all() for a, b in zip(first[1], second[1], strict=True))
    assert first[2] == second[2] and first[2]["gain"] > 0


@pytest.mark.slow
def test_the_example_runs_under_accelerate_from_an_empty_folder(tmp_path):
    """On the CPU, which has to be said; what is logged is logged once."""
    script = tmp_path / "script.py"
    script.write_text(
        EXAMPLE.read_text(encoding="utf-8").replace("max_steps=40", "max_steps=40, use_cpu=True")
    )
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    plain = [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [*launch, *plain, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'loss'") == 4  # 40 steps, every 10
    assert (tmp_path / "steered" / "checkpoint-40" / "steering" / "state.json").is_file()
