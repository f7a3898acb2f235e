"""LMUFormer at the published size, and conversion of the authors' weights.

    network = published(spiking=False).make(128, labels)            # 1,621,796 parameters with 35 labels
    network = published(spiking=True).make(128, labels)             # 1,689,894
    network.load_state_dict(from_reference(weights, network))

The names are those of the authors' code. Their checkpoints were not available, so the layout was read from the modules
of the code. A name may have the prefix ``module.``, which data-parallel training adds. A norm has ``weight``, ``bias``,
``running_mean`` and ``running_var`` of the given width, and ``num_batches_tracked``. The constants ``A``, ``B``, ``H``
and ``fft_H`` under ``block.0.attn.lmu.`` are ignored, because they are computed here. ``+ n`` is a bias of n values.
With spikes, the last norm of the stem comes before ``rpe_conv``.

| without spikes                                | with spikes                           | shape                        |
|-----------------------------------------------|---------------------------------------|------------------------------|
| ``patch_embed.conv_layers.0.0.weight``        | ``patch_embed.proj_conv.weight``      | (256, 128, 3)                |
| ``patch_embed.conv_layers.{1…3}.0.weight``    | ``patch_embed.proj_conv{1…3}.weight`` | (256, 256, 3)                |
| ``patch_embed.conv_layers.{0…3}.3`` norm      | ``patch_embed.proj_bn{,1,2,3}`` norm  | 256                          |
| ``patch_embed.rpe_conv.weight``               | the same                              | (256, 256, 3)                |
| –                                             | ``block.0.attn.prev_bn`` norm         | 256                          |
| ``block.0.attn.lmu.W_u``                      | the same                              | (1, 256) + 1                 |
| –                                             | ``block.0.attn.lmu.bn_u``, ``bn_m``   | 1, 512                       |
| ``block.0.attn.lmu.W_h``: memory, then input  | the same                              | (256, 512 / 768) + 256       |
| –                                             | ``block.0.attn.lmu.bn_h`` norm        | 256                          |
| ``block.0.attn.proj_conv``                    | the same                              | (256, 256, 1) + 256          |
| ``block.0.attn.proj_bn`` norm                 | the same                              | 256                          |
| ``block.0.mlp.fc1_conv``                      | the same                              | (1024, 256, 1) + 1024        |
| ``block.0.mlp.fc1_bn`` norm, after fc1        | before fc1                            | 1024 / 256                   |
| ``block.0.mlp.fc2_conv``                      | the same                              | (256, 1024, 1) + 256         |
| ``block.0.mlp.fc2_bn`` norm, after fc2        | before fc2                            | 256 / 1024                   |
| –                                             | ``head_bn`` norm                      | 256                          |
| ``head``                                      | the same                              | (35, 256) + 35               |

``W_h`` is one matrix there and two here: ``readout`` for the memory, and ``skip`` with the bias for the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from manyheads.core.errors import CheckpointError
from manyheads.kws.models.lmuformer import LMUFormer, LMUFormerConfig

# Parameters with 128 bins and 35 labels, by ``spiking``.
PARAMETERS = {False: 1_621_796, True: 1_689_894}
_CONSTANTS = {f"block.0.attn.lmu.{name}" for name in ("A", "B", "H", "fft_H")}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published(*, spiking: bool, lookahead: int = 5) -> LMUFormerConfig:
    """Return the published network. Its centred convolutions have a look-ahead of 5 frames; 0 makes it causal."""
    config = LMUFormerConfig(
        stem="1d",
        channels=256,
        kernels=(3, 3, 3, 3),
        stride=1,
        lookahead=lookahead,
        order=256,
        window=128,
        memories=1,
        ratio=4,
        published=True,
    )
    return replace(config, order=512, spiking=True) if spiking else config


def from_reference(weights: Mapping[str, Tensor], network: LMUFormer) -> dict[str, Tensor]:
    """Convert the authors' weights to a state dict of ``network``, a published network of any width.

    Raises:
        CheckpointError: a tensor is missing, unused or of another shape.
    """
    left = {name.removeprefix("module."): value for name, value in weights.items()}
    left = {name: value for name, value in left.items() if name not in _CONSTANTS}
    made: dict[str, Tensor] = {}
    expected = network.state_dict()

    def take(theirs: str, ours: str) -> Tensor:
        if theirs not in left:
            raise CheckpointError(f"reference weights: {theirs}: missing; it becomes {ours}")
        return left.pop(theirs)

    for theirs, ours in _names(network):
        if theirs not in left and theirs.endswith("num_batches_tracked"):
            made[ours] = expected[ours]
        else:
            made[ours] = _shaped(theirs, take(theirs, ours), expected[ours])
    memory = expected["blocks.0.mixer.readout.weight"].shape[1]
    joined = take("block.0.attn.lmu.W_h.weight", "readout and skip of the mixer")
    halves = {"readout.weight": joined[:, :memory], "skip.weight": joined[:, memory:]}
    halves["skip.bias"] = take("block.0.attn.lmu.W_h.bias", "skip of the mixer")
    for name, value in halves.items():
        ours = f"blocks.0.mixer.{name}"
        made[ours] = _shaped(f"block.0.attn.lmu.W_h ({name})", value, expected[ours])
    if left:
        raise CheckpointError(f"reference weights: found {sorted(left)}, which this network has no place for")
    return made


def _shaped(name: str, value: Tensor, expected: Tensor) -> Tensor:
    if value.dim() == expected.dim() + 1 and value.shape[-1] == 1:
        # a convolution with kernel 1 is a linear map
        value = value.squeeze(-1)
    if value.shape != expected.shape:
        raise CheckpointError(
            f"reference weights: {name}: found shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
        )
    return value.to(expected.dtype).clone()


def _names(network: LMUFormer) -> list[tuple[str, str]]:
    """Return pairs of the authors' name and the name here, without those of W_h."""
    spiking, stages = network.config.spiking, len(network.stem.convolutions)
    attn, mlp, mixer, ffn = "block.0.attn", "block.0.mlp", "blocks.0.mixer", "blocks.0.ffn"
    number = [str(n) if n else "" for n in range(stages)]
    if spiking:
        convolutions = [f"patch_embed.proj_conv{n}" for n in number]
        norms = {f"patch_embed.proj_bn{n}": f"stem.sites.{at}.norm" for at, n in enumerate(number[:-1])}
        norms |= {
            f"patch_embed.proj_bn{number[-1]}": "stem.position_site.norm",
            f"{attn}.prev_bn": f"{mixer}.entry.norm",
            f"{attn}.lmu.bn_u": f"{mixer}.input_site.norm",
            f"{attn}.lmu.bn_m": f"{mixer}.memory_site.norm",
            f"{attn}.lmu.bn_h": f"{mixer}.hidden_site.norm",
            f"{mlp}.fc1_bn": f"{ffn}.entry.norm",
            f"{mlp}.fc2_bn": f"{ffn}.inner.norm",
            "head_bn": "head_site.norm",
        }
    else:
        convolutions = [f"patch_embed.conv_layers.{n}.0" for n in range(stages)]
        norms = {f"patch_embed.conv_layers.{n}.3": f"stem.sites.{n}.norm" for n in range(stages)}
        norms |= {f"{mlp}.fc1_bn": f"{ffn}.inner.norm", f"{mlp}.fc2_bn": f"{ffn}.last.norm"}
    norms[f"{attn}.proj_bn"] = f"{mixer}.output_norm"
    products = {
        f"{attn}.lmu.W_u": f"{mixer}.encoder",
        f"{attn}.proj_conv": f"{mixer}.output",
        f"{mlp}.fc1_conv": f"{ffn}.widen",
        f"{mlp}.fc2_conv": f"{ffn}.narrow",
        "head": "head",
    }
    pairs = [(f"{theirs}.weight", f"stem.convolutions.{n}.weight") for n, theirs in enumerate(convolutions)]
    pairs.append(("patch_embed.rpe_conv.weight", "stem.position.weight"))
    pairs += [(f"{a}.{part}", f"{b}.{part}") for a, b in products.items() for part in ("weight", "bias")]
    return pairs + [(f"{a}.{part}", f"{b}.{part}") for a, b in norms.items() for part in _NORM]
