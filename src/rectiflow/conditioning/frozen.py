"""States of a text encoder that `transformers` loads, such as T5 (Raffel et al. 2020) or CLIP (Radford et al. 2021)."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from rectiflow.base.condition import Text
from rectiflow.base.errors import InputError
from rectiflow.base.memory_full import MemoryFull, is_full
from rectiflow.conditioning.config import FrozenConfig, StatesRecord
from rectiflow.conditioning.encoder_files import check_embedded, digest, embed, encoder_folder
from rectiflow.conditioning.text import TextEncoder, padded_length
from rectiflow.networks.config import StatesInput

_LOG = logging.getLogger("rectiflow")
_BATCH = 32
_USUAL = 512  # tokens at most, where an encoder names no limit of its own
_ENDLESS = 10**6  # a tokenizer without a limit names one beyond all bounds


class States(NamedTuple):
    """What an encoder says of one caption.

    Attributes:
        tokens: float32 L×D.
        pooled: float32 P, if it gives one vector for the whole caption.
    """

    tokens: Tensor
    pooled: Tensor | None


@final
class Frozen(TextEncoder):
    """A text encoder whose weights stay as they are; they are loaded when a caption first asks for them.

    A caption of white space alone is the null caption.

    Args:
        config: which, and how.
        folder: its files.
        device: where it computes.

    Raises:
        InputError: `transformers` is missing, cannot read the folder, or the length is beyond the encoder's limit.
    """

    gives: StatesInput

    def __init__(self, config: FrozenConfig, folder: Path, device: torch.device | str = "cpu") -> None:
        self.config, self.folder, self.device = config, folder, torch.device(device)
        self._told, self._model, self._lock = False, None, threading.RLock()
        library = _transformers()
        with _reading(folder):
            settings = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.tokenizer: Any = library.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        self._kind, self._settings, pooled = _text_model(settings, folder)
        self.length = _length(self._settings, self.tokenizer, config)
        self.gives = StatesInput(features=self._settings.hidden_size, pooled=pooled)

    @classmethod
    def load(
        cls, record: StatesRecord, model: Path, hashes: Mapping[str, str], device: torch.device | str = "cpu"
    ) -> Self:
        """The encoder of a saved model.

        Args:
            record: what `config.json` says of it.
            model: the model folder.
            hashes: SHA-256 of each of its files by name.
            device: where it computes.

        Raises:
            InputError: it is missing, or another one than the model was trained with.
        """
        config = FrozenConfig(name=record.name, length=record.length, precision=record.precision)
        if record.folder:
            folder = model / Path(record.folder).name
            check_embedded(folder, hashes)
            return cls(config.model_copy(update={"embed": True}), folder, device)
        try:
            folder = encoder_folder(record.name)
        except InputError as error:
            raise InputError(
                f"the text encoder of {model} cannot be had ({str(error).rstrip('.')}); put it back there, or write "
                f"its new place as 'name' into {model / 'config.json'}."
            ) from error
        if (found := digest(folder)) != record.sha256:
            raise InputError(
                f"{folder} is not the text encoder that {model} was trained with: the SHA-256 of its weights and "
                f"vocabulary is {found[:8]}…, expected {record.sha256[:8]}…; restore it."
            )
        return cls(config, folder, device)

    @cached_property
    def sha256(self) -> str:
        """Of its weights and its vocabulary."""
        return digest(self.folder)

    def __call__(self, captions: Sequence[str]) -> Text:
        """float32 states B×L×D, their mask, and the pooled vectors B×P of an encoder that gives them."""
        distinct = list(dict.fromkeys(caption for caption in captions if caption.strip()))
        states = dict(zip(distinct, self.encode(distinct), strict=True))
        return padded([states.get(caption) for caption in captions], self.gives)

    def encode(self, captions: Sequence[str]) -> list[States]:
        """The states of each caption, none of them null; how they are put into batches changes rounding alone.

        Raises:
            MemoryFull: the encoder finds no room.
        """
        ids = self._ids(captions)
        order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
        found: dict[int, States] = {}
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            with self._finding_room():
                found.update(zip(rows, self._encoded([ids[i] for i in rows]), strict=True))
        nothing = States(torch.zeros(0, self.gives.features, device=self.device), None)  # of signs it does not know
        return [found.get(i, nothing) for i in range(len(ids))]

    def release(self) -> None:
        """Give back the memory of the weights, until a caption asks for them again."""
        with self._lock:
            self._model = None

    def save(self, folder: Path, number: int) -> tuple[StatesRecord, dict[str, str]]:
        """Say which encoder it is; its files are put beside the weights only if its settings ask for that."""
        inside = f"encoder-{number}" if self.config.embed else ""
        hashes = embed(self.folder, folder / inside) if inside else {}
        record = StatesRecord(
            name=self.config.name,
            sha256=self.sha256,
            length=self.length,
            precision=self.config.precision,
            folder=inside,
            gives=self.gives,
        )
        return record, hashes

    @contextmanager
    def _finding_room(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            raise MemoryFull(
                f"{self.device} had no memory left for the text encoder {self.config.name}: name a smaller one, set "
                "its precision: bfloat16 or a length of fewer tokens, or use another device."
            ) from error

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption with the encoder's marks, `length` at most."""
        if not captions:
            return []
        with self._lock:  # a tokenizer cannot be used by two threads at once
            ids = self.tokenizer(list(captions), verbose=False)["input_ids"]
            for row, caption in enumerate(captions):
                if len(ids[row]) > self.length:
                    kept = self.tokenizer(caption, truncation=True, max_length=self.length)["input_ids"]
                    self._tell(len(ids[row]), kept)
                    ids[row] = kept
        return ids

    def _tell(self, count: int, kept: Sequence[int]) -> None:
        if not self._told:
            self._told = True
            text = self.tokenizer.decode(list(kept), skip_special_tokens=True)
            _LOG.warning(
                "a caption of %d tokens is cut to the %d of %s, after '…%s' (said once).",
                *(count, self.length, self.config.name, text[-40:]),
            )

    @torch.no_grad()
    def _encoded(self, ids: Sequence[Sequence[int]]) -> Iterator[States]:
        longest = max(map(len, ids))
        values = torch.full((len(ids), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(ids), longest, dtype=torch.int64)
        for row, each in enumerate(ids):
            values[row, : len(each)] = torch.tensor(each)
            mask[row, : len(each)] = 1
        model = self._loaded()
        with torch.autocast(self.device.type, enabled=False):
            output = model(input_ids=values.to(self.device), attention_mask=mask.to(self.device))
        tokens, pooled = output.last_hidden_state.float(), None
        if tokens.shape[-1] != self.gives.features:
            raise InputError(
                f"{self.folder} gives states of {tokens.shape[-1]} features, but its config.json says "
                f"{self.gives.features}; choose another encoder."
            )
        if self.gives.pooled:
            vector = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
            pooled = vector.float()
        for row, each in enumerate(ids):
            yield States(tokens[row, : len(each)], None if pooled is None else pooled[row])

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                with _reading(self.folder):
                    model, report = self._kind.from_pretrained(
                        self.folder,
                        config=self._settings,
                        dtype=getattr(torch, self.config.precision),
                        use_safetensors=True,
                        local_files_only=True,
                        trust_remote_code=False,
                        output_loading_info=True,
                    )
                # What pools is not asked, unless it is CLIP's.
                absent = sorted(n for n in report["missing_keys"] if self.gives.pooled or "pooler" not in n)
                if absent:
                    raise InputError(f"{self.folder}: its weights lack {absent[0]}; restore the encoder.")
                model = model.get_encoder() if self._settings.is_encoder_decoder else model
                self._model = model.requires_grad_(False).eval().to(self.device)
            return self._model


def padded(rows: Sequence[States | None], gives: StatesInput) -> Text:
    """States of captions as a batch on the CPU or where they are; None is the null caption."""
    some = [row for row in rows if row is not None]
    width = padded_length(max((len(row.tokens) for row in some), default=0))
    device = some[0].tokens.device if some else torch.device("cpu")
    values = torch.zeros(len(rows), width, gives.features, device=device)
    mask = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
    pooled = torch.zeros(len(rows), gives.pooled, device=device) if gives.pooled else None
    for number, row in enumerate(rows):
        if row is not None:
            values[number, : len(row.tokens)] = row.tokens
            mask[number, : len(row.tokens)] = True
            if pooled is not None and row.pooled is not None:
                pooled[number] = row.pooled
    return Text(values, mask, pooled)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("text encoders of kind frozen need transformers: pip install 'rectiflow[text]'.") from error
    return transformers


def _text_model(settings: Any, folder: Path) -> tuple[Any, Any, int]:
    """Which class of `transformers` reads captions by these settings, the settings it takes, and the width of P."""
    library, kind = _transformers(), settings.model_type
    if kind == "clip":
        text = settings.text_config
        text.projection_dim = settings.projection_dim
        return library.CLIPTextModelWithProjection, text, text.projection_dim
    if kind == "clip_text_model":
        if "CLIPTextModelWithProjection" in (settings.architectures or ()):
            return library.CLIPTextModelWithProjection, settings, settings.projection_dim
        return library.CLIPTextModel, settings, settings.hidden_size
    if getattr(settings, "vision_config", None) is not None or not getattr(settings, "hidden_size", None):
        raise InputError(f"{folder} is of kind {kind}, no encoder of text alone; expected T5, CLIP or their like.")
    if type(settings) in library.MODEL_FOR_TEXT_ENCODING_MAPPING:
        return library.AutoModelForTextEncoding, settings, 0
    return library.AutoModel, settings, 0


def _length(settings: Any, tokenizer: Any, config: FrozenConfig) -> int:
    """Tokens of a caption at most.

    Raises:
        InputError: more are asked for than the encoder has places.
    """
    places = getattr(settings, "max_position_embeddings", None)
    limits = [limit for limit in (places, tokenizer.model_max_length) if limit and limit < _ENDLESS]
    limit = min(limits, default=_USUAL)
    if config.length is not None and places and config.length > limit:
        raise InputError(f"length {config.length} is beyond the {limit} tokens that {config.name} reads; set {limit}.")
    return config.length or limit


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Let `transformers` read a folder, without its bars and reports; whatever it raises becomes one line."""
    logs = _transformers().utils.logging
    verbosity, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    except Exception as error:  # many kinds: of its parsers, of missing packages, of shapes
        if is_full(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder} cannot be read as a text encoder ({lines[0].rstrip('.')}).") from error
    finally:
        logs.set_verbosity(verbosity)
        if bar:
            logs.enable_progress_bar()
