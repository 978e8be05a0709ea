"""What a detector costs: parameters, operations, activations and memory, counted without memory or weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fpg_zoo.config import DetectorConfig
from fpg_zoo.config.catalog import Cost
from fpg_zoo.modeling.build import build_on_meta
from fpg_zoo.modeling.preprocess import padded_size
from fpg_zoo.modeling.tensor_memory import Ledger


class Counts(NamedTuple):
    """What running layers takes: operations and activations as of `Cost`, and the peak of bytes of tensors."""

    flops: int
    activations: int
    peak: int


def count_costs(config: DetectorConfig, image_size: tuple[int, int] | None = None) -> Cost:
    """The cost of a detector for one image, on the meta device: no weights are made and nothing is computed.

    The box head of a two-stage detector is counted for as many proposals, and its mask head for as many detections, as
    the config allows. RoIAlign, NMS and pasting masks are left out.

    Args:
        config: of a detector whose parts are registered.
        image_size: (height, width) in pixels of the resized image, which is padded as `config.preprocess` says; None
            for what a square image is resized to.

    Raises:
        ConfigError: a part is not registered.
    """
    size = padded_size(*(image_size or config.preprocess.square_size), config.preprocess.pad_divisor)
    model = build_on_meta(config, "custom")
    counts = count_layers(lambda: model.run_layers(torch.empty(1, 3, *size, dtype=torch.float32, device="meta")))
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=counts.flops,
        activations=counts.activations,
        memory=sum(tensor.nbytes for tensor in model.state_dict().values()) + counts.peak,
    )


@torch.no_grad()
def count_layers(run: Callable[[], object]) -> Counts:
    """What `run` takes, which may be on the meta device; tensors that it makes count, its input included if it is."""
    with FlopCounterMode(display=False) as flops, _Activations() as activations, Ledger() as ledger:
        run()
    return Counts(int(flops.get_total_flops()), activations.total, ledger.peak)


class _Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, `total` grows by the values that convolutions and matrix products give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            # Attention gives more beside its output, for the backward pass.
            output = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            self.total += output.numel()
        return result
