"""The CLIP score, which says how well an image fits its caption, by torchmetrics (Hessel et al., arXiv:2104.08718)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stabledllm.errors import UserError
from stabledllm.models.as_user_error import as_user_error
from stabledllm.models.families.config_values import check_numbers
from stabledllm.models.families.source import find_folder, read_config
from stabledllm.models.families.weights import compare_known_weights, held_weights
from stabledllm.models.pretrained import read_pretrained
from stabledllm.models.soundness import check_finite


class ClipScore:
    """Computes one score per image as torchmetrics defines it, ``100 max(cos(image, caption), 0)``.

    torchmetrics' own mean takes the maximum after averaging: the same wherever no cosine is negative.

    Captions beyond CLIP's length (77 tokens with both ends) are cut *before* their end token and counted in
    :attr:`truncated`. torchmetrics alone would cut off the end token too, at which CLIP reads a text's embedding; the
    embedding would then be read at the start token, and the score would not depend on the caption. Images are resized
    by PIL, as when CLIP was published, whether or not torchvision is installed.

    Args:
        name: a local folder in the hub's layout, or a hub's OWNER/NAME, such as ``openai/clip-vit-large-patch14``.

    Raises:
        UserError: torchmetrics is not installed, or the folder is missing or holds no complete CLIP.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        metric = _metric_class()
        self.name, self.device = name, torch.device(device)
        self._clip = _load(name)
        self._metric = metric(model_name_or_path=lambda: (self._clip, self._clip.process)).to(self.device)
        self.truncated = 0
        """How many of the captions scored so far were cut."""

    @property
    def note(self) -> str | None:
        """A sentence on the captions that were cut, for the reader of the scores; None where none was."""
        if not self.truncated:
            return None
        return f"{self.truncated} captions were longer than the {self._clip.length} tokens of '{self.name}' and cut."

    def score(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
        """One score in [0, 100] per image.

        Args:
            images: uint8, each of shape (S, S, 3).

        Raises:
            UserError: the numbers of captions and images differ, or an array is of another kind.
        """
        if len(images) != len(captions):
            raise UserError(
                f"CLIP score: expected a caption for each of {len(images)} pictures, found {len(captions)}."
            )
        self.truncated += sum(self._clip.tokens(caption) > self._clip.length for caption in captions)
        return [self._one(image, caption) for image, caption in zip(images, captions, strict=True)]

    def _one(self, image: np.ndarray, caption: str) -> float:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"CLIP score: expected a picture of uint8, shape (S, S, 3), found {image.dtype} of shape {image.shape}."
            )
        # torchmetrics returns the mean over all images since the reset, and computes on the images' device.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(self.device)
        self._metric.reset()
        self._metric.update(pixels, caption)
        return float(self._metric.compute())


class _Clip(nn.Module):
    """CLIP in the form that torchmetrics expects: embeddings are tensors, which transformers 5 wraps in objects."""

    def __init__(self, model: nn.Module, processor: Callable):
        super().__init__()
        self.model, self.config, self._processor = model, model.config, processor
        self.length = self.config.text_config.max_position_embeddings

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def process(self, **inputs) -> dict:
        """The model's inputs from the processor; texts are cut to the model's length and keep their end token."""
        cut = {"truncation": True, "max_length": self.length} if "text" in inputs else {}
        return self._processor(**inputs, **cut)

    def tokens(self, caption: str) -> int:
        """Number of tokens of the whole caption, with both ends."""
        return len(self._processor.tokenizer(caption, verbose=False)["input_ids"])


def _metric_class():
    try:
        from torchmetrics.multimodal import CLIPScore
    except ImportError:
        raise UserError(
            "CLIP score: expected torchmetrics, found it not installed; pip install 'stabledllm[clip]'."
        ) from None
    return CLIPScore


def _load(name: str) -> _Clip:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    if "/" not in name and not Path(name).is_dir():
        raise UserError(f"CLIP '{name}': expected a local folder or a hub's OWNER/NAME, found neither.")
    folder = find_folder(name, "CLIP", ())
    if (model_type := read_config(folder).get("model_type")) != "clip":
        raise UserError(f"CLIP '{name}': expected model_type 'clip' in {folder / 'config.json'}, found {model_type!r}.")
    what = f"CLIP '{name}'"
    stored = held_weights(folder, f"{what}: expected its files in {folder}, found what does not load")
    check_numbers(read_config(folder), str(folder / "config.json"), stored.shapes)
    with as_user_error(f"{what}: expected its files in {folder}", "found what does not load"):
        tokenizer = read_pretrained(CLIPTokenizer, folder)
        pixels = read_pretrained(CLIPImageProcessorPil, folder)
        config = read_pretrained(CLIPConfig, folder)
        with torch.device("meta"):
            empty = CLIPModel(config)
        shapes = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
        compare_known_weights(stored.shapes, what, shapes, empty.base_model_prefix)
        model, info = read_pretrained(
            CLIPModel, folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    # Further weights of older files (position_ids) do no harm; missing ones would be random.
    if missing := sorted(str(key) for key in info["missing_keys"]):
        raise UserError(f"{what}: expected every weight in {folder}, found no {missing[0]}.")
    check_finite(model, what)
    return _Clip(model.eval(), CLIPProcessor(image_processor=pixels, tokenizer=tokenizer))
