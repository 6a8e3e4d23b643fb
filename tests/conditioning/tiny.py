"""Text encoders of a few thousand random weights, written by `transformers` itself."""

import functools
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

CAPTIONS = ["a red 7 in the top left", "a blue 3 above a green 4", "a white 5 in the middle", "seven"]
LIMIT = 16
_CLIP = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": LIMIT, "projection_dim": 24},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
_T5 = {"vocab_size": 300, "d_model": 40, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
_BERT = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**_CLIP)),
    "clip-projection": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**_CLIP)),
    "clip-full": lambda: CLIPModel(
        CLIPConfig(text_config=_CLIP, vision_config={**_VISION, "image_size": 28, "patch_size": 14}, projection_dim=20)
    ),
    "t5": lambda: T5EncoderModel(T5Config(**_T5)),
    "t5-full": lambda: T5ForConditionalGeneration(T5Config(**_T5)),
    "bert": lambda: BertModel(BertConfig(**_BERT, intermediate_size=64, max_position_embeddings=LIMIT)),
}


def tokenizer():
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=marks, show_progress=False)
    tokens.train_from_iterator(CAPTIONS, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=LIMIT
    )


@functools.cache
def _written(kind: str, seed: int) -> Path:
    folder = Path(tempfile.mkdtemp())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind]()
        for parameter in model.parameters():  # some start at zero, and most so small that all captions look alike
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def encoder(folder: Path, kind: str, seed: int = 0) -> Path:
    """A tiny encoder in a new `folder`."""
    shutil.copytree(_written(kind, seed), folder)
    return folder
