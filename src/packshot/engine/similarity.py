"""How near pictures are to texts, by the model's own pair of CLIP encoders.

The figures rank what one model made. They are not those of another CLIP, and not to be compared
with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from packshot.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from packshot.engine.conditioning import TextEncoder
    from packshot.engine.networks.clip_vision import CLIPVision
    from packshot.engine.results import Picture

__all__ = ["cosines", "preprocess"]

# CLIP's own (arXiv:2103.00020), for folders whose preprocessor_config.json leaves them out.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def cosines(
    vision: CLIPVision,
    reader: TextEncoder,
    processor: Mapping[str, Any],
    images: Sequence[Picture],
    texts: Sequence[str],
) -> NDArray[np.float32]:
    """Return the cosines [images, texts] between the embeddings of pictures and of texts.

    ``processor`` is ``preprocessor_config.json``; ``reader`` the encoder that shares its space.
    Raises InvalidRequest if there is no picture or no text.
    """
    if not images or not texts:
        raise InvalidRequest("similarity needs at least one picture and one text.")
    weights = next(vision.parameters())
    pixels = torch.stack(
        [preprocess(image, vision.config.image_size, processor) for image in images]
    )
    ids = torch.tensor([reader.tokenizer.encode(text).ids for text in texts])
    seen = vision(pixels.to(weights.device, weights.dtype)).float()
    read = reader.network(ids.to(weights.device)).pooled.float()
    return (F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T).cpu().numpy()


def preprocess(image: Picture, side: int, processor: Mapping[str, Any]) -> Tensor:
    """Return [3, side, side] normalised: the shorter edge resized (bicubic), the middle cut out."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, int(width * scale)), max(side, int(height * scale)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    cut = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32)
    mean = np.asarray(processor.get("image_mean", CLIP_MEAN), dtype=np.float32)
    std = np.asarray(processor.get("image_std", CLIP_STD), dtype=np.float32)
    return torch.tensor((cut / 255 - mean) / std).permute(2, 0, 1)
