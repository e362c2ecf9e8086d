"""The networks in PyTorch.

Shapes: B is the batch, C are planes or channels, H and W rows and columns; `lr_BCHW` is the input.
A network returns a tuple with one (B, planes, scale H, scale W) for each plane group of its model's
color form. Values are float: codes of 8 bits in limited range divided by 255, or RGB in [0, 1].
Neither is clamped (`engines.contract.TileFormat.to_network`).

The parameters may have another dtype than the input, even several. Each layer computes in the dtype
of its own parameters. The last step, which adds the input or applies tanh, computes in the input's,
and so is the output.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srstream.models.checkpoint import Tensors, Weights
from srstream.models.table import ModelSpec, ResidualGenerator, Stack

Planes = tuple[Tensor, ...]

SOBEL_X = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
SOBEL_Y = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class EdgeBlock(nn.Module):
    """A 3x3 convolution re-parameterized along edges (ECBSR: Zhang et al., ACM MM 2021).

    Its kernel is the sum of five linear branches: a plain 3x3, a 1x1 expansion followed by a 3x3,
    and three 1x1 followed by a scaled Sobel-x, Sobel-y or Laplacian filter. `forward` adds the
    branches' kernels up and runs *one* convolution (collapsed training: the same gradients in a
    third of the time).

    Only the plain branch has a bias: the edge masks sum to zero, so a bias before them vanishes,
    and any other would add to the same constant.

    With `zero_sum` the nine taps of each kernel add up to zero and there is no bias, whatever the
    branches hold, so constant channels give zero.
    """

    edge_masks: Tensor

    def __init__(
        self, num_in: int, num_out: int, expansion: int = 2, *, zero_sum: bool = False
    ) -> None:
        super().__init__()
        self.zero_sum = zero_sum
        num_middle = expansion * num_out
        self.plain = nn.Conv2d(num_in, num_out, 3)
        self.expand = nn.Conv2d(num_in, num_middle, 1, bias=False)
        self.squeeze = nn.Conv2d(num_middle, num_out, 3, bias=False)
        bound = num_in**-0.5
        self.edge_points = nn.Parameter(torch.empty(3, num_out, num_in).uniform_(-bound, bound))
        self.edge_scales = nn.Parameter(torch.randn(3, num_out) * 1e-3)
        masks = torch.tensor([SOBEL_X, SOBEL_Y, LAPLACIAN])
        self.register_buffer("edge_masks", masks, persistent=False)
        if zero_sum:
            nn.init.zeros_(cast(Tensor, self.plain.bias)).requires_grad_(False)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (out, in, 3, 3) and bias (out,) that equal all branches together."""
        through_middle = torch.einsum(
            "omhw,mi->oihw", self.squeeze.weight, self.expand.weight[:, :, 0, 0]
        )
        along_edges = torch.einsum(
            "eoi,eo,ehw->oihw", self.edge_points, self.edge_scales, self.edge_masks
        )
        kernel = self.plain.weight + through_middle + along_edges
        bias = cast(Tensor, self.plain.bias)
        if self.zero_sum:
            return kernel - kernel.mean(dim=(2, 3), keepdim=True), torch.zeros_like(bias)
        return kernel, bias

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, bias = self.folded()
        return functional.conv2d(x_BCHW, kernel, bias, padding=1)


class UpscalingStack(nn.Module):
    """3x3 convolutions with PReLU between them, the nearest-neighbor anchor, and a PixelShuffle.

    The last convolution learns the difference to the input repeated `scale` x `scale` times. With
    `flat`, its taps add up to zero during training and it has no bias. Whatever the layers before
    it do, flat input then comes out flat and with the same value, except at edges, which are padded
    with zeros. All of that is linear, so it also holds for every weighted mean of such networks.
    """

    def __init__(self, spec: ModelSpec, *, reparameterized: bool, flat: bool = False) -> None:
        super().__init__()
        assert isinstance(spec.network, Stack)
        self.spec = spec
        channels = spec.network.layer_channels(spec.form)
        self.convolutions = nn.ModuleList(
            EdgeBlock(num_in, num_out, zero_sum=flat and layer == len(channels) - 1)
            if reparameterized
            else nn.Conv2d(num_in, num_out, 3, padding=1)
            for layer, (num_in, num_out) in enumerate(channels)
        )
        self.activations = nn.ModuleList(
            varied_prelu(width, layer) for layer, width in enumerate(spec.network.widths)
        )
        anchors = torch.tensor(spec.form.anchor_planes)
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, lr_BCHW: Tensor) -> Planes:
        x = for_layer(lr_BCHW, self.activations[0])
        for convolution, activation in zip(self.convolutions, self.activations, strict=False):
            x = activation(convolution(x))
        x = in_dtype(self.convolutions[-1](x), lr_BCHW.dtype)
        x = x + lr_BCHW[:, cast(Tensor, self.anchors)]
        groups = self.spec.form.outputs
        channels = x.split([group.num_channels for group in groups], dim=1)
        return tuple(
            functional.pixel_shuffle(part, group.scale)
            for part, group in zip(channels, groups, strict=True)
        )


def varied_prelu(num_channels: int, layer: int) -> nn.PReLU:
    """Make a PReLU whose slopes differ from channel to channel and from other layers.

    OpenVINO shares equal constants and then does not fuse the PReLU. That halves the speed and
    would spoil every benchmark of an untrained network.
    """
    prelu = nn.PReLU(num_channels)
    with torch.no_grad():
        prelu.weight.copy_(torch.linspace(0.20, 0.30, num_channels) + 0.003 * layer)
    return prelu


class ResidualBlock(nn.Module):
    """A residual block: convolution, BN, PReLU, convolution, BN, and the sum with the input."""

    def __init__(self, channels: int, layer: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.first_norm = _norm(channels, batch_norm)
        self.activation = varied_prelu(channels, layer)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.second_norm = _norm(channels, batch_norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.activation(self.first_norm(self.first(x_BCHW)))
        return x_BCHW + self.second_norm(self.second(inner))


class Generator(nn.Module):
    """SRGAN's generator (Ledig et al., CVPR 2017, figure 4), without BN once it is folded.

    Its layers are k9n64s1 and PReLU; residual blocks; k3n64s1 with BN and the long skip; twice
    k3n256s1, PixelShuffle(2) and PReLU; k9n3s1; and tanh, mapped from [-1, 1] to [0, 1].

    `forward` applies activations before the shuffles, and the last convolution before the last
    shuffle (`tail_before_shuffle`). That computes the same sums in 0.8 of the time, in training and
    in use. `forward_as_drawn` keeps the paper's order.
    """

    def __init__(self, spec: ModelSpec, *, batch_norm: bool) -> None:
        super().__init__()
        assert isinstance(spec.network, ResidualGenerator)
        self.spec = spec
        self.signed_input = spec.network.signed_input
        wide, num_planes = spec.network.channels, spec.form.num_input_planes
        num_blocks = spec.network.num_blocks
        self.head = nn.Conv2d(num_planes, wide, 9, padding=4)
        self.head_activation = varied_prelu(wide, 0)
        self.blocks = nn.ModuleList(
            ResidualBlock(wide, 1 + block, batch_norm=batch_norm) for block in range(num_blocks)
        )
        self.body = nn.Conv2d(wide, wide, 3, padding=1, bias=not batch_norm)
        self.body_norm = _norm(wide, batch_norm)
        self.upsampling = nn.ModuleList(nn.Conv2d(wide, 4 * wide, 3, padding=1) for _ in range(2))
        self.upsampling_activations = nn.ModuleList(
            varied_prelu(wide, 1 + num_blocks + step) for step in range(2)
        )
        self.tail = nn.Conv2d(wide, num_planes, 9, padding=4)

    def forward(self, lr_BCHW: Tensor) -> Planes:
        x = self.features(lr_BCHW)
        moved = before_shuffles(self)
        last = len(self.upsampling) - 1
        for step, convolution in enumerate(self.upsampling):
            slopes = moved[f"upsampling_activations.{step}.weight"]
            x = functional.prelu(convolution(x), slopes)
            if step < last:
                x = functional.pixel_shuffle(x, 2)
        kernel, bias = moved["tail.weight"], moved["tail.bias"]
        x = functional.pixel_shuffle(functional.conv2d(x, kernel, bias, padding=2), 2)
        return (0.5 * (torch.tanh(in_dtype(x, lr_BCHW.dtype)) + 1.0),)

    def forward_as_drawn(self, lr_BCHW: Tensor) -> Planes:
        """Compute the same in the paper's order, as the reference for `forward`."""
        x = self.features(lr_BCHW)
        for convolution, activation in zip(
            self.upsampling, self.upsampling_activations, strict=True
        ):
            x = activation(functional.pixel_shuffle(convolution(x), 2))
        return (0.5 * (torch.tanh(self.tail(x)) + 1.0),)

    def features(self, lr_BCHW: Tensor) -> Tensor:
        """Return the output of head, blocks and long skip, (B, channels, H, W)."""
        given = for_layer(2 * lr_BCHW - 1 if self.signed_input else lr_BCHW, self.head)
        x = self.head(given)
        if self.head.weight.dtype != self.head_activation.weight.dtype:
            x = for_layer(x, self.head_activation)
        x = start = self.head_activation(x)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, start + self.body_norm(self.body(x)))


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in this dtype. If it has it, nothing is added to an exported graph."""
    return x if x.dtype == dtype else x.to(dtype)


def for_layer(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a tensor in the dtype of a layer's parameters."""
    return in_dtype(x, cast(Tensor, layer.weight).dtype)


def before_shuffles(generator: Generator) -> dict[str, Tensor]:
    """Return the tensors that `Generator.forward` applies before the shuffles, by their names.

    An activation has a slope for each channel there, and the last convolution is 5x5.
    """
    moved = {
        f"upsampling_activations.{step}.weight": cast(
            nn.PReLU, activation
        ).weight.repeat_interleave(4)
        for step, activation in enumerate(generator.upsampling_activations)
    }
    tail = generator.tail
    moved["tail.weight"], moved["tail.bias"] = tail_before_shuffle(
        tail.weight, cast(Tensor, tail.bias)
    )
    return moved


def tail_before_shuffle(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Rewrite a 9x9 convolution after PixelShuffle(2) as a 5x5 convolution before it.

    The kernel (out, in, 9, 9) becomes (4 out, 4 in, 5, 5). There are four times as many channels
    before the shuffle, and the 2x2 results of each cell come out as channels. The sums are exactly
    the same.
    """
    num_out, num_in = kernel.shape[:2]
    padded = functional.pad(kernel, (1, 1, 1, 1))
    phases = [
        # Seen from this phase of a cell, taps -4 to 5 of the shuffled grid are five cells of two.
        padded[:, :, 1 - row : 11 - row, 1 - column : 11 - column]
        .reshape(num_out, num_in, 5, 2, 5, 2)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(num_out, 4 * num_in, 5, 5)
        for row in (0, 1)
        for column in (0, 1)
    ]
    return torch.stack(phases, dim=1).flatten(0, 1), bias.repeat_interleave(4)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


Network = UpscalingStack | Generator


def training_network(spec: ModelSpec, *, batch_norm: bool = True, flat: bool = False) -> Network:
    """Make the network for training: with re-parameterized blocks, or with BN.

    `flat` applies to stacks, see `UpscalingStack`; a generator has no anchor and cannot be made
    flat. A generator without BN (EDSR: Lim et al., CVPR Workshops 2017) folds to the same network.
    Its residual branches start at a tenth, so that training is stable at a high learning rate.
    """
    if isinstance(spec.network, ResidualGenerator):
        generator = Generator(spec, batch_norm=batch_norm)
        if not batch_norm:
            with torch.no_grad():
                for block in generator.blocks:
                    cast(ResidualBlock, block).second.weight.mul_(0.1)
        return generator
    network = UpscalingStack(spec, reparameterized=True, flat=flat)
    last = edge_blocks(network)[-1]
    with torch.no_grad():  # start close to the anchor, so that the first gradients are small
        last.plain.weight.mul_(0.1)
        last.squeeze.weight.mul_(0.1)
        nn.init.zeros_(cast(Tensor, last.plain.bias))
    return network


def network_to_tune(weights: Weights, *, flat: bool = False) -> Network:
    """Make a network for training that computes what these folded weights compute.

    With `flat`, their response to flat input is taken out. A generator has no BN here: it is
    folded, so a tuned network keeps its statistics.
    """
    if isinstance(weights.spec.network, ResidualGenerator):
        return network_from_weights(weights).train().requires_grad_(True)
    network = training_network(weights.spec, flat=flat)
    plain = network_from_weights(weights)
    assert isinstance(network, UpscalingStack) and isinstance(plain, UpscalingStack)
    with torch.no_grad():
        for block, convolution in zip(edge_blocks(network), plain.convolutions, strict=True):
            kernel, _ = block.folded()
            block.plain.weight += cast(nn.Conv2d, convolution).weight - kernel
            if not block.zero_sum:
                cast(Tensor, block.plain.bias).copy_(cast(Tensor, convolution.bias))
    network.activations.load_state_dict(plain.activations.state_dict())
    return network


def edge_blocks(network: UpscalingStack) -> list[EdgeBlock]:
    """Return the re-parameterized convolutions of a network in training, in order."""
    return [cast(EdgeBlock, block) for block in network.convolutions]


def plain_network(spec: ModelSpec) -> Network:
    """Make the folded network, which has only plain convolutions. It is what ships and runs."""
    if isinstance(spec.network, ResidualGenerator):
        return Generator(spec, batch_norm=False)
    return UpscalingStack(spec, reparameterized=False)


def fold(network: Network) -> Network:
    """Make the plain network that computes what a trained network computes at inference."""
    plain = plain_network(network.spec)
    with torch.no_grad():
        plain.load_state_dict(folded_tensors(network))
    return plain.eval()


def folded_tensors(network: Network) -> dict[str, Tensor]:
    """Return the plain network's tensors by name, with gradients to the trained tensors."""
    if isinstance(network, Generator):
        return _folded_norms(network)
    tensors: dict[str, Tensor] = {
        f"activations.{name}": value for name, value in network.activations.named_parameters()
    }
    for layer, block in enumerate(edge_blocks(network)):
        kernel, bias = block.folded()
        tensors |= {f"convolutions.{layer}.weight": kernel, f"convolutions.{layer}.bias": bias}
    return tensors


def _folded_norms(network: Generator) -> dict[str, Tensor]:
    """Return the state with each BN merged into the convolution before it."""
    trained = network.state_dict(keep_vars=True)
    state = {name: value for name, value in trained.items() if "_norm." not in name}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            convolution = name.removesuffix("_norm")
            variance = cast(Tensor, module.running_var)
            gain = module.weight / torch.sqrt(variance + module.eps)
            state[f"{convolution}.weight"] = (
                state[f"{convolution}.weight"] * gain[:, None, None, None]
            )
            state[f"{convolution}.bias"] = module.bias - cast(Tensor, module.running_mean) * gain
    return state


def network_tensors(plain: Network) -> Tensors:
    """Return a folded network's tensors as float32 arrays, by their names in weight files."""
    state = plain.state_dict()
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


def network_from_weights(weights: Weights) -> Network:
    """Make the folded network with these weights, on the CPU and ready to run."""
    network = plain_network(weights.spec)
    network.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in weights.tensors.items()}
    )
    return network.eval().requires_grad_(False)
