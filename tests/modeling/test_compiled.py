"""torch.compile takes the network as one graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

import fpg_zoo
from fpg_zoo.modeling.detectors import Detector, RetinaNet, TwoStageDetector

NAMES = [*fpg_zoo.list_models("*_r50_*"), *fpg_zoo.list_models("*_nano_*")]


class Network(nn.Module):
    """Backbone, neck and heads, on given RoIs where there are any."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, pooled: Sequence[Tensor]) -> list[Tensor]:
        model = self.model
        pyramid = model.neck(model.backbone(images))
        if isinstance(model, RetinaNet):
            logits, deltas = model.head(pyramid)
            return [*logits, *deltas]
        assert isinstance(model, TwoStageDetector)
        objectness, deltas = model.rpn(pyramid)
        outputs = [*objectness, *deltas, *model.box_head.predict(pooled[0])]
        if model.mask_head is not None:
            outputs.append(model.mask_head.predict(pooled[1]))
        return outputs


def inputs_of(model: Detector) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    pooled = []
    if isinstance(model, TwoStageDetector):
        heads = [head for head in (model.box_head, model.mask_head) if head is not None]
        pooled = [torch.randn(5, model.neck.out_channels, head.pooling.pool, head.pooling.pool) for head in heads]
    return torch.randn(2, 3, 128, 128), pooled


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_one_graph_and_computes_the_same(name: str) -> None:
    model = tiny_model(name).eval()
    network, inputs = Network(model), inputs_of(model)
    torch._dynamo.reset()
    with torch.no_grad():
        # An error where there is a break. Of the small ones, the graph is also traced to torch's own operators.
        backend = "aot_eager" if "nano" in name else "eager"
        compiled = torch.compile(network, backend=backend, fullgraph=True)
        for found, expected in zip(compiled(*inputs), network(*inputs), strict=True):
            assert (found - expected).abs().max() <= 1e-4 * max(float(expected.abs().max()), 1.0)
    torch._dynamo.reset()
