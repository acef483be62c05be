"""The learner's model and tokenizer from a folder, the hub or a configuration; what is wrong there
is said in words.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vpretrain.config.problems import nearest, shown
from vpretrain.language.data import word_problems
from vpretrain.language.learner import lora
from vpretrain.language.recipe import LanguageRecipe, LearnerSection
from vpretrain.run.resources import out_of_memory, too_deep
from vpretrain.system.contexts import own_random_state
from vpretrain.system.errors import Problem, UserError, user_error

ASSETS = Path(__file__).parents[2] / "assets"

_OLD_KEYS = (
    "rope_theta",
    "rope_scaling",
    "torch_dtype",
)  # transformers reads them still, and keeps them elsewhere


def named(model: str) -> str:
    """Where the checkpoint is that a recipe names: a packaged one, a folder (``~`` is the home
    folder) or a hub id.
    """
    packaged = ASSETS / model
    return str(packaged if (packaged / "config.json").is_file() else Path(model).expanduser())


def load_tokenizer(section: LearnerSection, location: str | None) -> Any:
    """The learner's tokenizer; a config with random weights uses the generator's unless one is
    named.

    Raises:
        UserError: the folder or hub id holds none.
    """
    name = location if section.tokenizer is None else named(section.tokenizer)
    if name is None:
        return word_problems.tokenizer()
    return _from_pretrained(
        AutoTokenizer, name, "learner.tokenizer" if section.tokenizer else "learner.model"
    )


def load_model(section: LearnerSection, location: str | None, seed: int) -> Any:
    """The learner's model in the recipe's attention, its weights in :func:`stored_dtype`.

    A folder that holds an adapter (PEFT) gives the model that it makes of its base, merged.

    Raises:
        UserError: the folder or hub id does not hold a whole causal language model, or the
            configuration makes none.
    """
    dtype = stored_dtype(section)
    if location is None:
        assert section.config is not None
        with own_random_state(seed):
            return new_model(
                section.config, "learner.config", dtype=dtype, attention=section.attention
            )
    if (base := lora.base_of(Path(location))) is not None:
        return lora.merge_into(load_model(section, named(base), seed), Path(location))
    model, report = _from_pretrained(
        AutoModelForCausalLM,
        location,
        "learner.model",
        dtype=dtype,
        attn_implementation=section.attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if unfilled := sorted(
        {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    ):
        raise user_error(
            "learner.model",
            f"{len(unfilled)} of the parameters that its config.json asks for are not in its "
            "weights, or of another size",
            value=", ".join(unfilled[:3]) + (", ..." if len(unfilled) > 3 else ""),
            accepted="a folder whose weights and config.json were saved together",
        )
    return model


def stored_dtype(section: LearnerSection) -> torch.dtype:
    """What the model's weights are kept in: float32 for what trains under ``dtype: bfloat16``.

    A bfloat16 number has 8 significant bits: AdamW at a rate of 1e-5 moves a weight of 0.02 by a
    thousandth of it, which rounds to nothing. Below LoRA the weights do not move, and the adapters
    are float32.
    """
    if section.dtype == "bfloat16" and section.lora is None:
        return torch.float32
    return getattr(torch, section.dtype)


def checkpoint_activations(model: Any) -> None:
    """Lets the blocks drop their activations in training mode; the backward pass runs each block
    again.

    Adapters are attached before this is called: after it, PEFT would hook the embeddings to ask for
    gradients, which the non-reentrant kind chosen here has no need of and functional transforms
    cannot go through.

    Raises:
        UserError: the architecture has no such mode.
    """
    if not model.supports_gradient_checkpointing:
        raise user_error(
            "learner.activation_checkpointing",
            f"{type(model).__name__} cannot run its blocks again",
            value=True,
            accepted="false for this model",
        )
    # Under its new name where transformers has it, since the old one warns there.
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})


def skeleton(recipe: LanguageRecipe) -> Any:
    """The learner's shapes on the meta device, before its weights are loaded or made; raises as
    :func:`load_model`.
    """
    section = recipe.learner
    dtype = stored_dtype(section)
    with torch.device("meta"):
        if section.model is not None:
            location = named(section.model)
            while (base := lora.base_of(Path(location))) is not None:
                location = named(base)
            config = _from_pretrained(AutoConfig, location, "learner.model")
            model = _from_config(config, "learner.model", section.model, dtype, section.attention)
        elif section.config is not None:
            model = new_model(
                section.config, "learner.config", dtype=dtype, attention=section.attention
            )
        else:
            assert section.prepare is not None
            made = section.prepare
            size = made.vocabulary if made.tokenizer == "bpe" else len(word_problems.vocabulary())
            config = {**made.config, "vocab_size": size}
            model = new_model(
                config, "learner.prepare.config", dtype=dtype, attention=section.attention
            )
        if section.lora is not None:
            lora.attach(model, section.lora, base=None, seed=recipe.seed)
    return model


def new_model(config: dict[str, Any], where: str, *, dtype: torch.dtype, attention: str) -> Any:
    """A model with random weights from a configuration with its ``model_type``.

    The weights are drawn in float32 and then cast, so that they are the same (but for rounding) in
    every dtype.

    Args:
        config: ``model_type`` and the keys of that model's ``transformers`` configuration.
        where: dotted recipe key of the configuration, for messages.
        dtype: of the model.
        attention: of the model, by its name in ``transformers``.

    Raises:
        UserError: an unknown type or key, or values that make no model.
    """
    _check_keys(config, where)
    try:
        resolved = AutoConfig.for_model(**config)
    except Exception as error:  # each configuration class has checks and exceptions of its own
        raise _makes_no_model(where, config, error) from error
    model = _from_config(resolved, where, config, torch.float32, attention)
    if dtype == torch.float32:
        return model
    drawn = model.state_dict()
    model = _from_config(resolved, where, config, dtype, attention)
    model.load_state_dict(drawn)
    return model


def _from_config(
    resolved: Any, where: str, given: object, dtype: torch.dtype, attention: str
) -> Any:
    try:
        return AutoModelForCausalLM.from_config(
            resolved, dtype=dtype, attn_implementation=attention
        )
    except Exception as error:  # sizes that do not go together, a kernel that is not installed, ...
        if out_of_memory(error):
            raise
        if _about_attention(error):
            raise _lacks_attention(attention, error) from error
        raise _makes_no_model(where, given, error) from error


def _makes_no_model(where: str, given: object, error: Exception) -> UserError:
    return user_error(
        where,
        f"this makes no causal language model: {_brief(error)}",
        value=given,
        accepted="`model_type` of a transformers causal language model, and values for its keys "
        "that "
        "go together",
    )


def _check_keys(config: dict[str, Any], where: str) -> None:
    """Refuses what transformers would take in silence: a misspelt key leaves its default, which may
    be huge.
    """
    kind, kinds = config.get("model_type"), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in kinds:
        message = (
            "transformers has no causal language model of this type"
            if "model_type" in config
            else "add this key"
        )
        accepted = f"one of {len(kinds)} names, for example llama, qwen2, gpt2"
        raise user_error(
            f"{where}.model_type",
            message + nearest(str(kind), kinds),
            value=kind or "",
            accepted=accepted,
        )
    if problems := too_deep(config, where):
        raise UserError(*problems)
    defaults = AutoConfig.for_model(kind)
    keys = sorted({*defaults.to_dict(), *defaults.attribute_map})
    unknown = [
        key for key in config if key not in (*keys, *_OLD_KEYS) and not hasattr(defaults, key)
    ]
    if unknown:
        raise UserError(
            *(
                Problem(
                    f"{where}.{key}",
                    shown(config[key]),
                    ", ".join(keys),
                    f"{kind} has no such key{nearest(key, keys)}",
                )
                for key in unknown
            )
        )


def _from_pretrained(loader: Any, name: str, where: str, **options: Any) -> Any:
    try:
        # Said, because transformers would ask on the terminal whether to run what the folder holds.
        return loader.from_pretrained(name, trust_remote_code=False, **_reach(name), **options)
    except Exception as error:  # the hub, tokenizers and safetensors have exceptions of their own
        if out_of_memory(error):
            raise
        if _about_attention(error):
            raise _lacks_attention(options.get("attn_implementation", ""), error) from error
        packaged = ", ".join(sorted(path.name for path in ASSETS.glob("*/")))
        raise user_error(
            where,
            _why(loader, Path(name), error),
            value=name,
            accepted=f"a model folder, a hub id, or a packaged checkpoint: {packaged}",
        ) from error


def _about_attention(error: Exception) -> bool:
    return "attention implementation" in str(error) or "FlashAttention" in str(error)


def _lacks_attention(attention: str, error: Exception) -> UserError:
    said = _brief(error).partition(". ")[0]
    return user_error(
        "learner.attention",
        f"this model does not run with it here: {said}",
        value=attention,
        accepted="eager (every model has it), or another that the model and this machine have",
    )


HUB_SECONDS = 5.0
"""How long the hub is waited for before the local cache is all there is; loaders themselves try for
most of a minute.
"""


@cache
def _reach(name: str) -> dict[str, bool]:
    """How a loader should look for ``name``: a hub id is asked for once, and without an answer
    looked up in the cache.

    Raises:
        OSError, httpx errors: the hub does not have it, or does not answer and the cache does not
            have it either.
    """
    if Path(name).is_dir() or not _may_be_hub_id(Path(name)):
        return {}
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except (
        Exception
    ):  # no network, no answer in time, offline by choice: each has an exception of its own
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            raise
        return {"local_files_only": True}
    return {}


def _may_be_hub_id(path: Path) -> bool:
    return not (
        path.is_absolute() or len(path.parts) > 2 or ".." in path.parts
    )  # it is NAME or OWNER/NAME


def _why(loader: Any, folder: Path, error: Exception) -> str:
    if folder.is_file():
        return "this is a file; name the folder that it is in"
    if not folder.is_dir():
        here = f"there is no such folder (a relative path starts at {Path.cwd()})"
        if not _may_be_hub_id(folder):
            return here
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{here}, and no public model of this name on the hub; for a private one log "
                "in "
                "with `hf auth login`"
            )
        return f"{here}, and it could not be had from the hub: {_brief(error)}"
    if "trust_remote_code" in str(error):
        return (
            "this model comes with code of its own, which is never run; name one of an "
            "architecture of transformers"
        )
    if (folder / "model" / "config.json").is_file():
        return f"this is the folder of a run, not of a model; did you mean {folder / 'model'}?"
    if loader is AutoTokenizer and not list(folder.glob("*token*")):
        return (
            "there is no tokenizer in this folder; name the one it was trained with in "
            "learner.tokenizer"
        )
    if loader is not AutoTokenizer and not (folder / "config.json").is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        return (
            "there is no config.json in this folder, which every transformers model has; it "
            f"holds {there}"
        )
    return f"cannot be loaded: {_brief(error)}"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
