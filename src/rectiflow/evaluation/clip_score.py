"""CLIP score: how near a picture and its caption lie in CLIP's common space (Hessel et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rectiflow.data.images import ImageSet
from rectiflow.evaluation.features import Features, LocalEncoder
from rectiflow.evaluation.memory import chosen, some
from rectiflow.request import Samples

_CHUNK = 64


def clip_score(encoder: LocalEncoder, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """100·max(cos, 0) of each picture and its caption, float64 N; what is longer than CLIP reads is cut.

    Args:
        encoder: a whole CLIP, with its tokenizer.
        pixels: N×C×H×W in [−1, 1].
        captions: N.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True)
    parts = []
    for start in range(0, len(captions), _CHUNK):
        given = tokenizer(list(captions[start : start + _CHUNK]), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            found = encoder.model.get_text_features(given["input_ids"], given["attention_mask"])
        parts.append(found if isinstance(found, Tensor) else found.pooler_output)
    return 100 * torch.cosine_similarity(encoder(pixels), torch.cat(parts).double()).clamp_min(0)


def clip_scores(by: Features, samples: Samples, data: ImageSet, seed: int) -> dict[str, float] | None:
    """Mean CLIP score of samples and of as many held-out pictures; None without prompts or without a whole CLIP.

    Args:
        by: what pictures are compared by.
        samples: what is scored, with their prompts.
        data: whose held-out pictures stand beside them.
        seed: chooses these.
    """
    captions = samples.prompts
    if not isinstance(by, LocalEncoder) or not by.reads or not any(captions):
        return None
    real, _ = some(data.held_out, seed, len(captions))
    theirs = data.held_out.captions(chosen(data.held_out, seed, len(captions)))
    return {
        "samples": round(float(clip_score(by, samples.pixels, captions).mean()), 3),
        "real": round(float(clip_score(by, real, theirs).mean()), 3),
    }
