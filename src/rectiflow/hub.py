"""Models on the Hugging Face hub, by huggingface_hub: the same folder as on a disk."""

import re
from pathlib import Path

from rectiflow.base.errors import InputError
from rectiflow.base.files import write_text

_FILES = ["config.json", "*.safetensors", "README.md", "tokenizer-*.json", "encoder-*/*"]
_ENCODER = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]


def is_hub_name(name: str) -> bool:
    """Whether `name` may be ORG/NAME on the hub: two plain words, and no folder here begins like it."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).parent.exists()


def fetch(name: str) -> Path:
    """The model ORG/NAME as a folder in the hub's own cache on this machine; fetched if it is not there yet.

    Raises:
        InputError: there is no such model, or no way to it.
    """
    return _fetch(name, "run or model", _FILES)


def fetch_encoder(name: str) -> Path:
    """The same of a text encoder that `transformers` loads, its weights as safetensors alone.

    Raises:
        InputError: there is no such encoder, or no way to it.
    """
    return _fetch(name, "text encoder", _ENCODER)


def _fetch(name: str, what: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # many kinds: offline, unknown, private, interrupted
        raise InputError(f"no {what} at {name}, neither here nor on the hub ({_reason(error)}).") from error


def publish(folder: Path, name: str, private: bool) -> str:
    """Upload the model in `folder` as ORG/NAME, made if need be; returns where it can be seen.

    Raises:
        InputError: the name is not ORG/NAME, or the hub refuses.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InputError(f"expected a name on the hub like org/name, received '{name}'.")
    from huggingface_hub import HfApi

    card = folder / "README.md"
    if not card.exists():
        write_text(card, _CARD.format(name=name))
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=_FILES))
    except Exception as error:
        raise InputError(f"could not upload to {name} ({_reason(error)}); log in with: hf auth login") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_CARD = """---
library_name: rectiflow
tags: [rectiflow, diffusion, flow-matching]
---

# {name}

A generative model trained with Rectiflow. `config.json` states its conventions.

```python
import rectiflow

samples = rectiflow.Pipeline.load("{name}").sample(rectiflow.Request(count=4))
```
"""
