"""What passes between the rooms: boxes, images, and what a detector finds in them."""

from fpg_zoo.structures.detections import Detections, Instances, check_score

__all__ = ["Detections", "Instances", "check_score"]
