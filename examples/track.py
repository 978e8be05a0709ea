"""Follow objects through a video: the zoo detects, ByteTrack gives each object a number, supervision draws.

    python examples/track.py street.mp4 --model mask_rcnn_r50_fpg --output tracked.mp4

Without a video it draws one of its own, of moving shapes, for the small model that comes with the package. Needs
`pip install 'fpg-zoo[video,supervision]' trackers`: ByteTrack was in supervision up to 0.30. Printed is a row for each
object in each frame: frame, seconds, number, class, box.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import supervision
from PIL import Image
from trackers import ByteTrackTracker

import fpg_zoo
from fpg_zoo.data.shapes import ShapesDataset
from fpg_zoo.inference.video import VideoWriter, open_video

FRAMES, RATE, STEP = 24, 12, 3  # of the video that is drawn: frames, frames a second, pixels a frame


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path, help="a file, or a URL of a stream")
    parser.add_argument("--model", default="mask_rcnn_nano_fpg", help="a name of `fpg-zoo list --pretrained`")
    parser.add_argument("--score", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=Path("tracked.mp4"))
    options = parser.parse_args()
    source = options.video
    if source is None:
        source = options.output.with_name("moving_shapes.mp4")
        with VideoWriter(source, RATE) as writer:
            for image in moving_shapes():
                writer.write(image)
    predictor = fpg_zoo.Predictor(fpg_zoo.create_model(options.model, pretrained=True))
    with open_video(source) as video, VideoWriter(options.output, video.rate) as writer:
        tracker = ByteTrackTracker(frame_rate=float(video.rate))
        boxes, labels = supervision.BoxAnnotator(), supervision.LabelAnnotator()
        images, again = itertools.tee(video)
        for image, found in zip(again, predictor.stream(images, score=options.score), strict=True):
            tracked = tracker.update(found.to_supervision())
            tracked = tracked[tracked.tracker_id != -1]  # those that were seen twice, so that noise has no number
            frame, time = image.info["frame"], image.info["time"]
            names = [f"{number} {name}" for number, name in zip(tracked.tracker_id, tracked["class_name"], strict=True)]
            for name, box in zip(names, tracked.xyxy.round().astype(int).tolist(), strict=True):
                print(frame, f"{time:.2f}", name, *box)
            drawn = labels.annotate(boxes.annotate(np.array(image), tracked), tracked, labels=names)
            writer.write(Image.fromarray(drawn), time)
    print(f"written: {options.output}", file=sys.stderr)
    return 0


def moving_shapes() -> Iterator[Image.Image]:
    """A window that glides over a drawn scene, so that its objects move to the left."""
    scene = ShapesDataset("val", 1, size=(240, 320 + FRAMES * STEP))[0].image.permute(1, 2, 0).numpy()
    for number in range(FRAMES):
        yield Image.fromarray(np.ascontiguousarray(scene[:, number * STEP : number * STEP + 320]))


if __name__ == "__main__":
    sys.exit(main())
