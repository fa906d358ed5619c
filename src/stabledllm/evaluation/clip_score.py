"""CLIP score: how well an image fits its caption, by torchmetrics (Hessel et al., arXiv:2104.08718)."""

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
    """Scores as torchmetrics defines them, ``100 max(cos(image, caption), 0)``, one an image.

    torchmetrics' own mean takes the maximum after averaging: the same wherever no cosine is negative.

    Captions beyond CLIP's length (77 tokens with both ends) are cut *before* their end token and counted in
    :attr:`truncated`. Left to itself torchmetrics cuts the end token off too, where CLIP reads a text's embedding; the
    embedding is then read at the start token, and the score depends on no caption. Images are resized by PIL, as
    when CLIP was published, whether or not torchvision is there.

    Args:
        name: a local folder in the hub's layout, or a hub's OWNER/NAME, such as ``openai/clip-vit-large-patch14``.

    Raises:
        UserError: no torchmetrics, no such folder, or one that holds no whole CLIP.
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
        """A sentence for those who read the scores; None where no caption was cut."""
        if not self.truncated:
            return None
        return f"{self.truncated} captions were longer than the {self._clip.length} tokens of '{self.name}' and cut."

    def score(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> list[float]:
        """One score in [0, 100] per image, uint8, shape (S, S, 3).

        Raises:
            UserError: another number of captions than of images, or an array of another kind.
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
        # torchmetrics gives a mean over what it was shown, and computes where the images are.
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(self.device)
        self._metric.reset()
        self._metric.update(pixels, caption)
        return float(self._metric.compute())


class _Clip(nn.Module):
    """CLIP as torchmetrics takes it: embeddings are tensors (transformers 5 gives them inside of objects)."""

    def __init__(self, model: nn.Module, processor: Callable):
        super().__init__()
        self.model, self.config, self._processor = model, model.config, processor
        self.length = self.config.text_config.max_position_embeddings

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def process(self, **inputs) -> dict:
        """The processor's inputs of the model; texts are cut to its length with their end token kept."""
        cut = {"truncation": True, "max_length": self.length} if "text" in inputs else {}
        return self._processor(**inputs, **cut)

    def tokens(self, caption: str) -> int:
        """Of the whole caption, with both ends."""
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
    folder = find_folder(name)
    if (found := read_config(folder).get("model_type")) != "clip":
        raise UserError(f"CLIP '{name}': expected model_type 'clip' in {folder / 'config.json'}, found {found!r}.")
    what = f"CLIP '{name}'"
    held = held_weights(folder, f"{what}: expected its files in {folder}, found what does not load")
    check_numbers(read_config(folder), str(folder / "config.json"), held.shapes)
    with as_user_error(f"{what}: expected its files in {folder}", "found what does not load"):
        tokenizer = read_pretrained(CLIPTokenizer, folder)
        pixels = read_pretrained(CLIPImageProcessorPil, folder)
        config = read_pretrained(CLIPConfig, folder)
        with torch.device("meta"):
            empty = CLIPModel(config)
        shapes = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
        compare_known_weights(held.shapes, what, shapes, empty.base_model_prefix)
        model, info = read_pretrained(
            CLIPModel, folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    # Weights that older files hold besides (position_ids) are no harm; missing ones would be random.
    if missing := sorted(str(key) for key in info["missing_keys"]):
        raise UserError(f"{what}: expected every weight in {folder}, found no {missing[0]}.")
    check_finite(model, what)
    return _Clip(model.eval(), CLIPProcessor(image_processor=pixels, tokenizer=tokenizer))
