"""A compiled network sees few input shapes on a GPU, and gives what the plain one does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from elsewhere import Elsewhere
from tiny_models import tiny_model
from torch import Tensor
from torchvision.ops import box_iou

import fpg_zoo
from fpg_zoo.config import PreprocessConfig
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.errors import ConfigError
from fpg_zoo.inference.compiled import FewShapes, compile_network, shape_for, shapes_of
from fpg_zoo.inference.exported.detector import ExportedDetector
from fpg_zoo.modeling.detectors import Detector
from fpg_zoo.modeling.preprocess import padded_size, preprocess, resized_size
from fpg_zoo.structures import Detections

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def not_compiled() -> Iterator[None]:
    """What torch.compile is given runs as it is."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.7
    before = getattr(config, name)
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
    setattr(config, name, before)


def test_the_shapes_are_those_of_usual_images() -> None:
    # 16:9 is 360 x 640, padded to 384; 4:3 is 480 x 640, padded to 512.
    side = PreprocessConfig(longest_side=640, pad_divisor=64)
    assert set(shapes_of(side)) == {(384, 640), (512, 640), (640, 640), (640, 512), (640, 384)}
    assert shape_for((448, 640), side) == (512, 640)  # 3:2
    assert shape_for((640, 64), side) == (640, 384)
    # 16:9 is 750 x 1333, 4:3 is 800 x 1067; what lies between them is up to 800 x 1333.
    sides = PreprocessConfig(longest_side=1333, shortest_side=800, pad_divisor=32)
    across = {(768, 1344), (800, 1088), (800, 1344)}
    assert set(shapes_of(sides)) == {(800, 800)} | across | {(wide, high) for high, wide in across}
    assert shape_for((800, 1216), sides) == (800, 1344)
    assert shapes_of(PreprocessConfig(fixed_size=(300, 500), pad_divisor=1)) == ((300, 500),)


def test_images_of_every_size_come_in_few_shapes() -> None:
    config = PreprocessConfig(longest_side=640, pad_divisor=32)
    seen = set()
    for height in range(1, 1500, 37):
        for width in range(1, 1500, 41):
            size = padded_size(*resized_size(height, width, config), config.pad_divisor)
            shape = shape_for(size, config)
            assert shape[0] >= size[0]
            assert shape[1] >= size[1]
            seen.add(shape)
    assert len(seen) == 5


def test_a_larger_input_has_the_shapes_of_the_next_scale() -> None:
    """As of `tta`, which looks at images at 1.25 times their size."""
    config = PreprocessConfig(longest_side=640, pad_divisor=64)
    assert shape_for((600, 800), config) == (640, 832)  # 4:3 of 800
    assert shape_for((704, 1000), config) == (768, 1024)  # 4:3 of 1000


class Recorded:
    """A network, and the shapes of its inputs."""

    def __init__(self, model: Detector) -> None:
        self.model, self.shapes = model, list[tuple[int, ...]]()

    def __call__(self, images: Tensor) -> tuple[Sequence[Tensor], ...]:
        self.shapes.append(tuple(images.shape))
        return type(self.model).run_dense(self.model, images)


@pytest.mark.parametrize("name", ["retinanet_nano_fpg", "mask_rcnn_nano_fpg"])
@pytest.mark.parametrize(("number", "filled"), [(2, 2), (3, 4)])
def test_padding_that_is_an_images_own_changes_nothing(name: str, number: int, filled: int) -> None:
    plain = tiny_model(name)
    torch.manual_seed(0)
    images, sizes = torch.randn(number, 3, 128, 128), [(128, 128 - 20 * index) for index in range(number)]
    model, network = through_few_shapes(plain)
    expected, found = plain.detect(images, sizes), model.detect(images, sizes)
    assert network.shapes == [(filled, 3, 128, 128)]
    for before, after in zip(expected, found, strict=True):
        if number == filled:
            assert torch.equal(before.boxes, after.boxes)
            assert torch.equal(before.scores, after.scores)
        assert agreeing(before, after) >= 0.97 * len(before) > 50


def through_few_shapes(plain: Detector) -> tuple[Detector, Recorded]:
    """A copy whose network sees few shapes, and what it has seen."""
    model = copy.deepcopy(plain)
    network = Recorded(model)
    model.run_dense = FewShapes(network, model.config.preprocess)  # type: ignore[assignment, method-assign]
    return model, network


@pytest.mark.slow
@pytest.mark.parametrize(("name", "height"), [("retinanet_nano_fpg", 60), ("mask_rcnn_nano_fpg", 120)])
def test_a_trained_detector_finds_the_same_beside_more_padding(name: str, height: int) -> None:
    """Strips of 320 x `height` are padded to 4:3, and nearly all objects are found as before."""
    plain = fpg_zoo.create_model(name, pretrained=True)
    model, network = through_few_shapes(plain)
    dataset = ShapesDataset("val", 16)
    same = total = 0
    for index in range(len(dataset)):
        images, sizes = preprocess([dataset[index].image[:, 120 : 120 + height]], plain.config.preprocess)
        (expected,), (found,) = plain.detect(images, sizes), model.detect(images, sizes)
        expected = expected.above(0.5)
        near = (box_iou(expected.boxes, found.boxes) > 0.9) & (expected.labels[:, None] == found.labels)
        near &= (expected.scores[:, None] - found.scores).abs() < 0.05
        same, total = same + int(near.any(1).sum()), total + len(expected)
        assert network.shapes[-1][2] > images.shape[2]
    assert same >= 0.95 * total > 15


def agreeing(expected: Detections, found: Detections) -> int:
    """How many are found again: of the class, corners to 2 pixels, the score to 0.02."""
    near = (expected.boxes[:, None] - found.boxes).abs().amax(-1) < 2
    near &= (expected.scores[:, None] - found.scores).abs() < 0.02
    return int((near & (expected.labels[:, None] == found.labels)).any(1).sum())


@pytest.mark.slow
@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("name", ["retinanet_nano_fpg", "mask_rcnn_nano_fpg"])
def test_on_a_gpu_a_network_is_compiled_for_few_shapes(name: str, optimized: bool) -> None:
    plain = copy.deepcopy(tiny_model(name))
    device = Elsewhere()
    device.put_module(plain)
    with device.active():
        torch.manual_seed(0)
        images = device.put(torch.randn(3, 3, 128, 128))
        expected = plain.detect(images, [(128, 100)] * 3)
        waits, model = device.waits.total(), plain
        if optimized:
            model = fpg_zoo.optimize(plain, compile=True)
        else:
            fpg_zoo.Predictor(plain, compile=True)
        device.waits.clear()
        found = model.detect(images, [(128, 100)] * 3)
        assert device.waits.total() == waits
        assert isinstance(model.run_dense, FewShapes)
        assert all(map(device.has, (found[0].boxes, found[0].scores)))
        for before, after in zip(expected, found, strict=True):
            assert agreeing(before, after) >= 0.97 * len(before) > 50


@pytest.mark.usefixtures("not_compiled")
def test_copies_are_not_compiled_and_compiling_twice_is_once() -> None:
    model = copy.deepcopy(tiny_model("retinanet_nano_fpg"))
    compile_network(model)
    compiled = model.run_dense
    compile_network(model)
    assert model.run_dense is compiled
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.run_dense.__self__ is other
        assert "run_dense" not in vars(other)
    assert model.state_dict().keys() == tiny_model("retinanet_nano_fpg").state_dict().keys()


@pytest.mark.slow
def test_the_network_is_compiled_with_shapes_that_do_not_change() -> None:
    """Traced to torch's own operators, as for CUDA graphs, without what compiles those."""
    plain = tiny_model("retinanet_nano_fpg")
    model = copy.deepcopy(plain)
    torch._dynamo.reset()
    network = torch.compile(model.run_dense, backend="aot_eager", dynamic=False, fullgraph=True)
    model.run_dense = FewShapes(network, model.config.preprocess)  # type: ignore[assignment, method-assign]
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 128)
    (before,), (after,) = plain.detect(images, [(128, 100)]), model.detect(images, [(128, 100)])
    torch._dynamo.reset()
    assert agreeing(before, after) >= 0.97 * len(before) > 50


def test_an_exported_file_is_not_compiled() -> None:
    exported = ExportedDetector.__new__(ExportedDetector)
    exported.path = "model.onnx"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"model\.onnx: compile does not apply to an exported file"):
        fpg_zoo.Predictor(exported, compile=True)
