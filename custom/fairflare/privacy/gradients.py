# SPDX-License-Identifier: Apache-2.0
"""Each record's own gradient of a batch: its norm, and sums in which every record has a factor of its own.

One forward pass notes what each trained layer was given; one backward pass finds the slopes of the loss at what the
layers gave back, and nothing else: gradients of the whole batch are not worked out on the way. A layer's gradient for
a record follows from these two, so weighted sums need no second pass (Bu et al. 2023). ``hooks`` keeps every record's
gradient in between; ``ghost`` works out norms, through products of pixels with pixels where those are smaller than the
gradient, and leaves out what would take much memory. Layers of other kinds go through Opacus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import nn
from torch.nn import functional, grad

from fairflare.privacy.refusals import refused, unusable

Mode = Literal["hooks", "ghost"]
Samples = dict[torch.Tensor, torch.Tensor]

_MARK = "_fairflare_record_gradients"
_BLOCK = 4096
#: Numbers of a record's gradient in one layer up to which ``ghost`` keeps it: less than to work it out twice.
_SMALL = 1 << 15
#: Numbers that are turned into float64 at once: they stay in the processor's cache.
_AT_ONCE = 1 << 15
#: Products of pixels with pixels lose what cancels. The norm is taken longer by what may be lost, its square by this
#: share of the product of both norms; in float32 that is what rounding may add to the sum itself.
_LOST = {torch.float32: 2.0**-44, torch.float64: 2.0**-47}


@dataclass(eq=False)
class _Call:
    """A layer's part in one forward pass: what it was given, and what it gave back."""

    layer: nn.Module
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    versions: list[int]
    slopes: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    samples: Samples = field(default_factory=dict)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.layer.parameters() if parameter.requires_grad]


class RecordGradients:
    """Gradients of the records of one batch after the other, until :meth:`close`.

    Parameters
    ----------
    model
        Without buffers, in training mode; it is called as it is, and gets no attribute that is a tensor's.
    """

    def __init__(self, model: nn.Module, mode: Mode) -> None:
        if any(True for _ in model.buffers()):
            raise unusable("a model with buffers", "none: nobody accounts for what they keep of the records")
        if not model.training:
            raise unusable("a model that is not in training mode", "training mode")
        if hasattr(model, _MARK) or hasattr(model, "autograd_grad_sample_hooks"):
            raise refused("TWICE", "a second DP-SGD on the same model", "one for the whole job")
        self._model, self._mode, self._calls, self._watching = model, mode, list[_Call](), False
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._room: Samples = {}
        layers = list(_layers(model))
        self._prepared = [layer for layer in layers if not _is_known(layer)]
        try:
            for layer in self._prepared:
                prepare_layer(layer)
        except NotImplementedError:
            raise unusable("a layer that Opacus has no gradients of records for", "another model") from None
        self._handles = [layer.register_forward_hook(self._note) for layer in layers]
        setattr(model, _MARK, True)

    def close(self) -> None:
        """Take everything off the model; this object is of no use afterwards."""
        self.forget()
        self._room = {}
        for handle in self._handles:
            handle.remove()
        for layer in self._prepared:
            if hasattr(layer, "ft_compute_sample_grad"):
                delattr(layer, "ft_compute_sample_grad")
        if hasattr(self._model, _MARK):
            delattr(self._model, _MARK)

    def forget(self) -> None:
        """Drop all that is known of records, so that no step meets what is left of another.

        The room that long gradients took is kept, and written over: to ask for gigabytes anew takes longer than to
        fill them.
        """
        self._calls = []

    def norms(self, losses: Callable[[], torch.Tensor], size: int) -> torch.Tensor:
        """L2 norm of each record's gradient over all trained parameters, float64 (size,), never taken too short.

        Parameters
        ----------
        losses
            A forward pass of the model, which gives each record's loss, (size,).
        """
        self.forget()
        self._watching = True
        try:
            loss = losses()
        finally:
            self._watching = False
        if loss.shape != (size,):
            raise unusable("losses of another shape", "one loss per record")
        self._find_slopes(loss, size)
        squares = torch.zeros(size, dtype=torch.float64)
        for call in self._calls:
            for norm in self._norms_of(call):
                squares += norm.square()
        return squares.sqrt()

    def add_weighted(self, totals: Sequence[torch.Tensor], factors: torch.Tensor) -> None:
        """Add sum_i factor_i gradient_i to ``totals``: one tensor like each trained parameter, float64.

        Parameters
        ----------
        factors
            One for each record of the last :meth:`norms`, float64, 0 or more; multiplied as shares of the largest, as
            small ones would cost float32 its digits.
        """
        largest = float(factors.max())
        if largest > 0:
            total: Samples = dict(zip(self._parameters, totals, strict=True))
            for call in self._calls:
                for parameter, found in self._weighted(call, factors / largest):
                    _add_to(total[parameter], found, largest)
        self.forget()

    def _note(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """What is noted of each trained layer's call."""
        if not (self._watching and torch.is_grad_enabled()):
            return
        if not isinstance(output, torch.Tensor) or any(not isinstance(one, torch.Tensor) for one in inputs):
            raise unusable("a layer of other things than tensors", "tensors in, a tensor out")
        given = tuple(one.detach() for one in inputs)
        self._calls.append(_Call(layer, given, output, [one._version for one in (*inputs, output)]))

    def _find_slopes(self, loss: torch.Tensor, size: int) -> None:
        known = [id(parameter) for call in self._calls for parameter in call.trained]
        if len(known) != len(set(known)):
            raise unusable("a layer that is called twice for one batch", "once")
        if set(known) != {id(parameter) for parameter in self._parameters}:
            raise unusable("a trained parameter without a gradient for each record", "one for each")
        # Otherwise nothing is left of what the layer was given, or gave back.
        if any([one._version for one in (*call.inputs, call.output)] != call.versions for call in self._calls):
            raise unusable("operations in place behind a layer", "none")
        outputs = [call.output for call in self._calls]
        found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(loss.sum(), outputs, allow_unused=True)
        for call, slopes in zip(self._calls, found, strict=True):
            if slopes is None or any(one.ndim == 0 or len(one) != size for one in (slopes, *call.inputs)):
                raise unusable("a trained parameter without a gradient for each record", "one for each")
            call.slopes = slopes

    def _norms_of(self, call: _Call) -> Iterator[torch.Tensor]:
        """Norms of a call's gradients, each float64 (B,); keeps the gradients if they are wanted again."""
        layer, ghost = call.layer, self._mode == "ghost"
        if ghost and isinstance(layer, nn.Linear) and layer.weight.requires_grad and call.slopes.ndim == 2:
            yield _norm(call.inputs[0]) * _norm(call.slopes)
            if _is_trained(layer.bias):
                yield _norm(call.slopes)
            return
        if ghost and _is_plain(layer) and layer.weight.requires_grad:
            yield from _norms_of_convolution(layer, call)
            return
        samples = self._samples(call)
        yield from (_norm(found) for found in samples.values())
        call.samples = {
            parameter: found for parameter, found in samples.items() if not ghost or parameter.numel() <= _SMALL
        }

    def _weighted(self, call: _Call, factors: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each of a call's parameters, the sum over records."""
        left = [parameter for parameter in call.trained if parameter not in call.samples]
        slopes = call.slopes
        shares = factors.to(slopes.dtype)
        if left:
            scaled = slopes * shares.view(-1, *[1] * (slopes.ndim - 1))
            if _is_plain(call.layer) and left == [call.layer.weight]:
                yield call.layer.weight, _sum_of_convolution(call.layer, call.inputs[0], scaled)
            elif isinstance(call.layer, nn.Linear) and slopes.ndim == 2:
                sums = {id(call.layer.weight): scaled.t() @ call.inputs[0], id(call.layer.bias): scaled.sum(dim=0)}
                yield from ((parameter, sums[id(parameter)]) for parameter in left)
            else:
                call.samples |= self._samples(call)
        for parameter, found in call.samples.items():
            yield parameter, (shares.to(found.dtype) @ found.reshape(len(found), -1)).view_as(parameter)
        call.samples = {}

    def _samples(self, call: _Call) -> Samples:
        """Every record's gradient of a layer, (B, ...) for each of its trained parameters."""
        layer = call.layer
        if _is_plain(layer) and layer.weight.requires_grad:
            columns = _columns(layer, call.inputs[0])
            found: Samples = {
                layer.weight: _by_record(layer, call, columns, self._room_for(layer.weight, len(columns)))
            }
            if _is_trained(layer.bias):
                found[layer.bias] = call.slopes.flatten(2).sum(dim=2)
            return found
        known = GradSampleModule.GRAD_SAMPLERS
        sampler: Any = known[type(layer)] if _is_known(layer) else ft_compute_per_sample_gradient
        given: Samples = sampler(layer, list(call.inputs), call.slopes)
        return {parameter: sample for parameter, sample in given.items() if parameter.requires_grad}

    def _room_for(self, parameter: torch.Tensor, records: int) -> torch.Tensor | None:
        """The same memory as the last time, where it is much."""
        if parameter.numel() <= _SMALL:
            return None
        room = self._room.get(parameter)
        if room is None or len(room) < records:
            room = self._room[parameter] = parameter.new_empty(records, *parameter.shape)
        return room[:records]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that have trained parameters of their own; one of an unknown kind stands for all that is in it."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        yield module
        if not _is_known(module):
            return
    for child in module.children():
        yield from _layers(child)


def _is_known(layer: nn.Module) -> bool:
    """Whether Opacus's own gradients of this layer are right: of convolutions they take all padding for zeros."""
    plain = not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or layer.padding_mode == "zeros"
    return plain and type(layer) in GradSampleModule.GRAD_SAMPLERS


def _is_trained(parameter: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    return parameter is not None and parameter.requires_grad


def _add_to(total: torch.Tensor, found: torch.Tensor, factor: float) -> None:
    """Add ``factor`` times ``found``, in float64; torch's own of two types is four times as slow on large tensors."""
    sums, numbers = total.view(-1), found.reshape(-1)
    for start in range(0, numbers.numel(), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        sums[part].add_(numbers[part].to(torch.float64), alpha=factor)


# ------------------------------------------------------------------------------------------------------- convolutions


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution of images that unfolding turns into a product of matrices."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _columns(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What each pixel of the output is made of, (B, inputs, pixels)."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
        return inputs.flatten(2)
    return functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def _by_record(layer: Any, call: _Call, columns: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
    out = None if room is None else room.view(len(room), len(layer.weight), -1)
    found = torch.bmm(call.slopes.flatten(2), columns.transpose(1, 2), out=out)
    return found.view(len(found), *layer.weight.shape)


def _norms_of_convolution(layer: Any, call: _Call) -> Iterator[torch.Tensor]:
    slopes, columns = call.slopes.flatten(2), _columns(layer, call.inputs[0])
    pixels = slopes.shape[2]
    if 4 * pixels * pixels <= layer.weight.numel() and layer.weight.numel() > _SMALL:
        yield _norm_through_pixels(slopes, columns)
    else:
        found = _by_record(layer, call, columns)
        if layer.weight.numel() <= _SMALL:
            yield _norm(found)
            call.samples[layer.weight] = found
        else:  # the sum is worked out another way, which may lose other digits of what cancels
            lost = math.sqrt(_LOST[slopes.dtype]) * _norm(slopes) * _norm(columns)
            yield torch.hypot(_norm(found), lost)
    if _is_trained(layer.bias):
        call.samples[layer.bias] = slopes.sum(dim=2)
        yield _norm(call.samples[layer.bias])


def _norm_through_pixels(slopes: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Norm of slopes @ columns^T of each record, (B,): of (slopes^T slopes) * (columns^T columns) the sum, in float64.

    Taken longer by what both this sum and that of the gradient itself may lose to rounding.
    """
    first, second = slopes.to(torch.float64), columns.to(torch.float64)
    first, second = torch.bmm(first.transpose(1, 2), first), torch.bmm(second.transpose(1, 2), second)
    square = (first * second).sum(dim=(1, 2)).clamp(min=0.0)
    both = first.diagonal(dim1=1, dim2=2).sum(dim=1) * second.diagonal(dim1=1, dim2=2).sum(dim=1)
    return (square + _LOST[slopes.dtype] * both).sqrt()


def _sum_of_convolution(layer: Any, inputs: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = grad.conv2d_weight(  # type: ignore[no-untyped-call]
        inputs, layer.weight.shape, slopes, layer.stride, layer.padding, layer.dilation
    )
    return found


# -------------------------------------------------------------------------------------------------------------- norms


def _norm(gradients: torch.Tensor) -> torch.Tensor:
    """L2 norm of each record's gradient, float64 (B,): too short a norm would let a gradient through unclipped.

    A long row is summed in blocks: in float32 alone, two million squares add up to 0.04 % too little. A short one is
    summed in float64, as the squares of small float32 numbers vanish; in a block they are far below any bound.
    """
    flat = gradients.flatten(1)
    whole = flat.shape[1] // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(flat[:, :whole].reshape(len(flat), whole // _BLOCK, _BLOCK), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1, dtype=torch.float64)
    return torch.hypot(torch.linalg.vector_norm(blocks, dim=1, dtype=torch.float64), rest)
