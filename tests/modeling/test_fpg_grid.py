"""The grid as data: which nodes and transitions it has, what it refuses, and what it computes on hand-made maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fpg_zoo.config import FPGConfig, FPGGrid, triangle_grid
from fpg_zoo.errors import ConfigError
from fpg_zoo.modeling.necks.fpg import FPG, Pathway

CHANNELS = (3, 4, 5, 6)  # of the stand-ins for C2..C5


pytestmark = pytest.mark.usefixtures("one_thread")


def _grid(pathways=2, levels=3, skipped=None, direction="up", **transitions):
    skipped = ((),) * pathways if skipped is None else skipped
    return FPGGrid(directions=(direction,) * pathways, skipped=skipped, levels=levels, **transitions)


def _stages(finest, *, start=0, images=1, channels=CHANNELS):
    """Random C2..C5 of which the stage `start` is `finest` pixels square."""
    generator = torch.Generator().manual_seed(0)
    sides = [int(finest * 2.0 ** (start - stage)) for stage in range(len(channels))]
    return [torch.randn(images, c, side, side, generator=generator) for c, side in zip(channels, sides, strict=True)]


# --- which nodes there are ---------------------------------------------------------------------------------------


def test_the_published_grid_computes_a_triangle_and_then_everything():
    # behavior.md: pathway s leaves level l untouched for s < 4, 3, 2, 1, 0 (levels 0..4).
    grid = triangle_grid()
    computed = [[level for level in range(5) if grid.computes(pathway, level)] for pathway in range(9)]
    assert computed == [[4], [3, 4], [2, 3, 4], [1, 2, 3, 4]] + [[0, 1, 2, 3, 4]] * 5
    assert grid.directions == ("up",) * 9


def test_the_published_nodes_have_the_published_transitions():
    # behavior.md: level 0 has no `same_up` (from_finer), level 4 no `across_down` (across_from_coarser).
    neck = FPG(FPGConfig(start_level=0, out_channels=2), CHANNELS)
    for pathway in neck.pathways:
        for level, node in pathway.nodes.items():
            expected = {"from_finer", "lateral", "across_from_coarser", "skip"}
            expected -= {"from_finer"} if level == "0" else {"across_from_coarser"} if level == "4" else set()
            assert set(node.keys()) == expected
    # 1 + 2 + 3 + 4 nodes of the triangle and 5 x 5 after it.
    assert sum(len(pathway.nodes) for pathway in neck.pathways) == 35


@pytest.mark.parametrize(("direction", "along"), [("up", "from_finer"), ("down", "from_coarser")])
def test_a_grid_with_everything_on_lacks_only_what_lies_beyond_its_edges(direction, along):
    grid = _grid(1, direction=direction, across_from_finer=True)
    assert set(grid.transitions(0, 1)) == {along, "lateral", "across_from_coarser", "across_from_finer", "skip"}
    assert set(grid.transitions(0, 0)) == {"lateral", "across_from_coarser", "skip"} | ({along} - {"from_finer"})
    assert set(grid.transitions(0, 2)) == {"lateral", "across_from_finer", "skip"} | ({along} - {"from_coarser"})


def test_transitions_that_are_switched_off_do_not_exist():
    grid = _grid(1, along=False, lateral=None, across_from_coarser=False)
    assert [grid.transitions(0, level) for level in range(3)] == [("skip",)] * 3


def test_fewer_pathways_than_the_triangle_needs_leave_the_finest_levels_alone():
    grid = triangle_grid(pathways=2, levels=4)
    assert grid.skipped == ((0, 1, 2), (0, 1))


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"levels": 1, "skipped": ((), ())}, r"levels=1: a grid needs at least 2 levels"),
        ({"pathways": 0}, r"directions=\(\): a grid needs at least one pathway"),
        ({"direction": "left"}, r"directions\[0\]='left': use one of 'up', 'down'"),
        ({"lateral": "linear"}, r"lateral='linear': use one of 'conv', 'identity', None"),
        ({"skip": False}, r"skip=False: use one of 'conv', 'identity', None"),
        ({"skipped": ((),)}, r"skipped has 1 entries for 2 pathways: give one tuple of levels per pathway"),
        ({"skipped": ((), (), ())}, r"skipped has 3 entries for 2 pathways"),
        ({"skipped": ((), (3,))}, r"skipped\[1\] names level 3: levels are 0\.\.2"),
        ({"skipped": ((-1,), ())}, r"skipped\[0\] names level -1: levels are 0\.\.2"),
        ({"skipped": ((), (0, 1, 2))}, r"skipped\[1\] skips every level: a pathway without nodes; drop it instead"),
        ({"skipped": ((), (2, 0, 1, 0))}, r"skipped\[1\] skips every level"),
        # (0) is easily written for (0,).
        ({"skipped": ((0), ())}, r"skipped\[0\]"),
        # Nothing leads into the coarsest level but its finer neighbor, and that way is off.
        ({"along": False, "lateral": None, "skip": None}, r"pathway 0 computes level 2, but no transition leads there"),
        # Upwards, nothing leads into the finest level.
        (
            {"across_from_coarser": False, "lateral": None, "skip": None},
            r"pathway 0 computes level 0, but no transition .*: switch on lateral, skip .*, or add 0 to skipped\[0\]",
        ),
        # The second pathway alone is wrong: the first skips level 0.
        (
            {"across_from_coarser": False, "lateral": None, "skip": None, "skipped": ((0,), ())},
            r"pathway 1 computes level 0, but no transition leads there",
        ),
    ],
)
def test_a_wrong_grid_is_refused_with_the_reason(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        _grid(**arguments)


@pytest.mark.parametrize(
    ("start", "levels"),
    [
        (0, 3),  # C2..C5 are four stages, the grid has three levels
        (4, 5),  # there is no fifth stage
        (-1, 5),
    ],
)
def test_a_grid_that_does_not_fit_the_backbone_is_refused(start, levels):
    config = FPGConfig(start_level=start, out_channels=2, grid=_grid(1, levels))
    with pytest.raises(ValueError, match=rf"a pyramid of {levels} levels from backbone stage {start} of 4"):
        FPG(config, CHANNELS)


# --- grids that the published models do not use ------------------------------------------------------------------

UNUSUAL = {
    "all down": (0, 32, _grid(2, 5, direction="down")),
    "up, then down": (0, 32, FPGGrid(directions=("up", "down"), skipped=((), ()))),
    "across from finer": (0, 32, _grid(2, 5, across_from_finer=True)),
    "down, everything on": (0, 32, _grid(2, 5, direction="down", across_from_finer=True)),
    "identity lateral and skip": (0, 32, _grid(2, 5, lateral="identity", skip="identity")),
    "no lateral": (0, 32, _grid(2, 5, lateral=None)),
    "no skip": (0, 32, _grid(2, 5, skip=None)),
    "neighbours only": (0, 32, _grid(2, 5, lateral=None, skip=None, across_from_finer=True)),
    "two levels": (2, 8, _grid(2, 2)),
    "six levels": (0, 64, _grid(2, 6)),
    "published": (0, 32, triangle_grid()),
    "holes": (0, 32, FPGGrid(directions=("up", "down"), skipped=((1, 3), (0, 4)))),
}


def _neck(name, extra_levels="pool"):
    start, finest, grid = UNUSUAL[name]
    torch.manual_seed(0)
    neck = FPG(FPGConfig(start_level=start, out_channels=8, grid=grid, extra_levels=extra_levels), CHANNELS).eval()
    return neck, _stages(finest, start=start, images=2)


@pytest.mark.parametrize("extra_levels", ["pool", "conv"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_grid_gives_one_map_per_level_each_half_the_finer_one(name, extra_levels):
    neck, stages = _neck(name, extra_levels)
    _, finest, grid = UNUSUAL[name]
    shapes = [tuple(level.shape) for level in neck(stages)]
    assert shapes == [(2, 8, finest >> level, finest >> level) for level in range(grid.levels)]


@pytest.mark.parametrize("extra_levels", ["pool", "conv"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_the_gradient_reaches_every_parameter(name, extra_levels):
    neck, stages = _neck(name, extra_levels)
    sum(level.square().sum() for level in neck(stages)).backward()
    without = [key for key, p in neck.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


# --- what is computed, on maps made by hand ----------------------------------------------------------------------


@torch.no_grad()
def _make_identity(module):
    """Let every convolution below `module` pass its center pixel on unchanged, channel by channel; no bias.

    A BatchNorm as it is made divides by sqrt(1 + 1e-5), which is set to 1 here.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.zeros_(child.weight)
            centre = child.kernel_size[0] // 2
            for channel in range(min(child.weight.shape[:2])):
                child.weight[channel, channel, centre, centre] = 1
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            child.eps = 0.0
    return module.eval()


@pytest.mark.parametrize("pathways", [1, 2, 3])
def test_identities_alone_add_the_input_once_per_pathway(pathways):
    # Node of pathway p = previous + input, and before pathway 0 stands the input: after p pathways (p + 1) * input.
    # The output is ReLU and an identity convolution.
    grid = _grid(pathways, 4, along=False, across_from_coarser=False, lateral="identity", skip="identity")
    neck = _make_identity(FPG(FPGConfig(start_level=0, out_channels=2, grid=grid), (2, 2, 2, 2)))
    stages = _stages(16, channels=(2, 2, 2, 2))
    for output, stage in zip(neck(stages), stages, strict=True):
        torch.testing.assert_close(output, ((pathways + 1) * stage).clamp(min=0))


def _ramp(side, first):
    """(1, 1, side, side): first, first + 1, ... row by row."""
    return torch.arange(first, first + side * side, dtype=torch.float32).reshape(1, 1, side, side)


def _pathway(grid, index=0):
    return _make_identity(Pathway(FPGConfig(start_level=0, out_channels=1, grid=grid), index))


def test_from_finer_reads_its_own_pathway_at_stride_2():
    # Level 0 is lateral + skip = 0 + 1 * a. Level 1 is b + that very node at every second pixel of every second row:
    # a = 0..15 as 4 x 4 gives (0, 2, 8, 10).
    a, b = _ramp(4, 0), _ramp(2, 100)
    grid = _grid(1, 2, lateral=None, skip="identity", across_from_coarser=False)
    previous = [torch.full_like(a, 1e6), torch.full_like(b, 1e6)]  # not read by this grid
    fine, coarse = _pathway(grid)(previous, [a, b])
    assert torch.equal(fine, a)
    assert coarse.flatten().tolist() == [100, 101 + 2, 102 + 8, 103 + 10]


def test_from_coarser_of_a_downward_pathway_reads_its_own_pathway_enlarged():
    # Level 1 is made first and is b = (1, 2; 3, 4); level 0 is a + that with each pixel repeated 2 x 2.
    a, b = torch.full((1, 1, 4, 4), 10.0), _ramp(2, 1)
    grid = _grid(1, 2, direction="down", lateral=None, skip="identity", across_from_coarser=False)
    previous = [torch.full_like(a, 1e6), torch.full_like(b, 1e6)]
    fine, coarse = _pathway(grid)(previous, [a, b])
    assert torch.equal(coarse, b)
    assert fine[0, 0].tolist() == [[11, 11, 12, 12], [11, 11, 12, 12], [13, 13, 14, 14], [13, 13, 14, 14]]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_across_transitions_read_the_previous_pathway(direction):
    # Whichever level is made first, the other one does not see it. Level 0: 0 + previous level 1 (5, 6; 7, 8) enlarged.
    # Level 1: 0 + previous level 0 (0..15) at every second pixel (0, 2; 8, 10).
    grid = _grid(1, 2, direction=direction, along=False, lateral=None, skip="identity", across_from_finer=True)
    inputs = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    fine, coarse = _pathway(grid)([_ramp(4, 0), _ramp(2, 5)], inputs)
    assert fine[0, 0].tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [7, 7, 8, 8], [7, 7, 8, 8]]
    assert coarse.flatten().tolist() == [0, 2, 8, 10]


def test_a_transition_clips_negatives_before_its_convolution_and_an_identity_does_not():
    previous, inputs = [torch.full((1, 1, 1, 1), v) for v in (-3.0, -3.0)], [torch.full((1, 1, 1, 1), -4.0)] * 2
    options = {"along": False, "across_from_coarser": False}
    # ReLU(-3) + ReLU(-4) = 0; -3 - 4 = -7; and one of each.
    for lateral, skip, expected in (("conv", "conv", 0), ("identity", "identity", -7), ("conv", "identity", -4)):
        column = _pathway(_grid(1, 2, lateral=lateral, skip=skip, **options))(previous, inputs)
        assert [level.item() for level in column] == [expected, expected]


def test_a_transition_has_no_activation_after_its_norm():
    # The convolution turns 2 into -2, which arrives as it is.
    pathway = _pathway(_grid(1, 2, along=False, across_from_coarser=False, skip=None))
    for node in pathway.nodes.values():
        nn.init.constant_(node["lateral"].conv.weight, -1)
    column = [torch.full((1, 1, 1, 1), 2.0)] * 2
    assert [level.item() for level in pathway(column, column)] == [-2, -2]


def test_every_transition_of_the_published_node_is_added():
    # Constant maps 1, 2, 3 and zero level inputs but for 100: the middle node of a second pathway is
    # from_finer(node 0) + lateral 2 + across_from_coarser 3 + skip 100, node 0 being lateral 1 + across 2 + skip 100.
    grid = _grid(1, 3)
    previous = [torch.full((1, 1, side, side), value) for side, value in ((4, 1.0), (2, 2.0), (1, 3.0))]
    inputs = [torch.full_like(level, 100.0) for level in previous]
    finest, middle, coarsest = _pathway(grid)(previous, inputs)
    assert finest.unique().tolist() == [103]
    assert middle.unique().tolist() == [103 + 2 + 3 + 100]
    assert coarsest.unique().tolist() == [208 + 3 + 100]


def test_a_skipped_level_passes_the_previous_map_on_and_neighbours_read_it_there():
    # Level 0 is skipped: its map stays the previous one, and from_finer of level 1 reads that: 0 + (0, 2; 8, 10).
    grid = _grid(1, 2, skipped=((0,),), lateral=None, skip="identity", across_from_coarser=False)
    previous = [_ramp(4, 0), torch.full((1, 1, 2, 2), 1e6)]
    fine, coarse = _pathway(grid)(previous, [torch.full((1, 1, 4, 4), 1e6), torch.zeros(1, 1, 2, 2)])
    assert fine is previous[0]
    assert coarse.flatten().tolist() == [0, 2, 8, 10]


def test_a_pathway_leaves_the_columns_it_is_given_unchanged():
    neck, stages = _neck("up, then down")
    inputs = neck.inputs(stages)
    before = [level.clone() for level in inputs]
    given = list(inputs)
    neck.pathways[0](given, given)
    assert all(torch.equal(level, old) for level, old in zip(given, before, strict=True))


def test_level_inputs_beyond_the_backbone_are_subsampled_or_convolved_with_stride_2():
    # The finest level is C5, 4 x 4; all convolutions pass the center on, so both ways keep every second pixel.
    stages = [*_stages(8, channels=(1, 1, 1)), _ramp(4, 0)]
    for extra_levels in ("pool", "conv"):
        config = FPGConfig(start_level=3, out_channels=1, grid=_grid(1, 3), extra_levels=extra_levels)
        first, second, third = _make_identity(FPG(config, (1, 1, 1, 1))).inputs(stages)
        assert torch.equal(first, stages[3])
        assert second.flatten().tolist() == [0, 2, 8, 10]
        assert third.flatten().tolist() == [0]


def test_the_output_is_a_3x3_convolution_with_bias_after_relu():
    torch.manual_seed(0)
    grid = _grid(1, 4, along=False, across_from_coarser=False, lateral="identity", skip="identity")
    neck = FPG(FPGConfig(start_level=0, out_channels=2, grid=grid), (2, 2, 2, 2))
    stages = _stages(16, channels=(2, 2, 2, 2))
    _make_identity(neck.inputs)
    for output, convolution, stage in zip(neck(stages), neck.outputs, stages, strict=True):
        nn.init.constant_(convolution.bias, 0.0)
        plain = F.conv2d((2 * stage).clamp(min=0), convolution.weight, padding=1)
        torch.testing.assert_close(output, plain)


@pytest.mark.parametrize(
    ("sides", "complaint"),
    [
        # A 60-pixel image: C2..C5 are 15, 8, 4 and 2 pixels.
        ((15, 8, 4, 2), "level 0 is 15x15 and level 1 is 8x8, not half of it: pad the images"),
        # A 48-pixel image: 12, 6, 3, and C5 is 2, more than half.
        ((12, 6, 3, 2), "level 2 is 3x3 and level 3 is 2x2"),
        # A 96-pixel image fits the backbone, but not the level beyond it: 3 halves to 2.
        ((24, 12, 6, 3), "level 3 is 3x3 and level 4 is 2x2"),
    ],
)
def test_sizes_that_do_not_halve_are_refused(sides, complaint):
    neck = FPG(FPGConfig(start_level=0, out_channels=2, grid=_grid(1, 5)), CHANNELS)
    stages = [torch.zeros(1, c, side, side) for c, side in zip(CHANNELS, sides, strict=True)]
    with pytest.raises(ValueError, match=complaint):
        neck(stages)
