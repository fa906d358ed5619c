"""Makes the image tokenizer that ships as ``tiny-vq``: MAGVIT-v2 in small, trained on the drawn scenes.

    python scripts/train_image_tokenizer.py --out src/stabledllm/assets/tiny-vq

The loss is the reconstruction's (pixels of objects and around them weigh more than the plain background) plus
look-up-free quantisation's own terms (arXiv:2310.05737): z stays near its code, each place is sure of its
code, all codes together are used. No adversarial and no perceptual term: the scenes are flat colours.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stabledllm.images.judge import judge
from stabledllm.images.magvit import Magvit, MagvitConfig
from stabledllm.images.scenes import BACKGROUND, SIDE, draw, scene
from stabledllm.images.tokenizer import ImageTokenizer


def pool(split: str, seed: int, count: int) -> tuple[list, np.ndarray]:
    """Scenes and their pictures, uint8, (count, S, S, 3)."""
    scenes = [scene(split, seed, i) for i in range(count)]
    return scenes, np.stack([draw(wanted, i) for i, wanted in enumerate(scenes)])


def pixel_weight(pixels: Tensor, objects: float) -> Tensor:
    """``objects`` within a pixel of an object, 1 elsewhere."""
    white = torch.tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1
    drawn = ((pixels - white).abs().sum(1, keepdim=True) > 0.01).float()
    return 1 + (objects - 1) * F.max_pool2d(drawn, 3, stride=1, padding=1)


def quantisation_terms(z: Tensor, embedding: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(distance of z to its code, mean entropy of a place's code, entropy of the mean code), nats a bit."""
    flat = z.flatten(2).transpose(1, 2).flatten(0, 1)
    near = F.mse_loss(flat, torch.where(flat > 0, 1.0, -1.0))
    log_p = (flat @ embedding.T * (2 / temperature)).log_softmax(-1)
    own = -(log_p.exp() * log_p).sum(-1).mean()
    mean = log_p.exp().mean(0)
    return near, own / z.shape[1], -(mean * mean.clamp_min(1e-9).log()).sum() / z.shape[1]


def evaluate(model: Magvit, scenes: list, pictures: np.ndarray) -> str:
    """Share of pictures that show their scene after a round trip, the error of a pixel, and how many codes they use."""
    tokenizer = ImageTokenizer(copy.deepcopy(model), "in training", "")
    codes = tokenizer.encode(pictures)
    decoded = tokenizer.decode(codes)
    right = np.mean([judge(picture, wanted).correct for picture, wanted in zip(decoded, scenes, strict=True)])
    error = np.abs(decoded.astype(float) - pictures).mean()
    share = torch.bincount(codes.flatten()).double() / codes.numel()
    used, perplexity = (share > 0).sum(), torch.special.entr(share).sum().exp()
    return f"judged right {right:.3f}, error {error:.2f} of 255, {used} codes, perplexity {perplexity:.1f}"


def save(model: Magvit, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("quantize.")}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def loss_of(model: Magvit, pixels: Tensor, args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its terms before they are weighted."""
    z = model.encoder(pixels)
    # The gradient of the bits is given to z as it is.
    decoded = model.decoder(z + (torch.where(z > 0, 1.0, -1.0) - z).detach())
    weight, error = pixel_weight(pixels, args.objects), decoded - pixels
    rebuilt = ((error.abs() + error**2) * weight).sum() / (3 * weight.sum())
    near, sure, spread = quantisation_terms(z, model.quantize.embedding, args.temperature)
    loss = rebuilt + args.commit * near + args.sure * sure - args.spread * spread
    return loss, {"rebuilt": rebuilt.item(), "near": near.item(), "sure": sure.item(), "spread": spread.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=8192, help="pictures to train on")
    parser.add_argument("--ch", type=int, default=32)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--objects", type=float, default=4.0, help="weight of an object's pixels")
    parser.add_argument("--commit", type=float, help="weight of the distance of z to its code", default=0.1)
    parser.add_argument("--sure", type=float, help="weight of the entropy of a place's code", default=0.02)
    parser.add_argument("--spread", type=float, help="weight of the entropy of all codes together", default=0.02)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the probability of a code given z")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    config = MagvitConfig(
        ch=args.ch,
        encoder_ch_mult=(1, 1, 2),
        encoder_num_res_blocks=(1, 1, 1),
        decoder_ch_mult=(1, 1, 2),
        decoder_num_res_blocks=(1, 1, 1),
        z_channels=args.bits,
        resolution=SIDE,
        norm_groups=8,
        mid_attention=False,
    )
    model = Magvit(config).to(memory_format=torch.channels_last)
    _, pictures = pool("train", args.seed, args.scenes)
    train = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    held_out = pool("validation", args.seed, 200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100, max(0.02, 2 * (1 - s / args.steps)))
    )
    started = time.time()
    for step in range(args.steps):
        pixels = train[torch.randint(len(train), (args.batch,))].contiguous(memory_format=torch.channels_last)
        loss, terms = loss_of(model, pixels, args)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
            print(f"step {step + 1}: {shown}; {evaluate(model, *held_out)} ({time.time() - started:.0f} s)", flush=True)
            save(model, args.out)


if __name__ == "__main__":
    main()
