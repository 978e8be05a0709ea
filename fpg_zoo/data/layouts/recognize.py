"""Which layout a folder has, by what is in it."""

from __future__ import annotations

from pathlib import Path

from fpg_zoo.data.layouts import coco_files, hub_datasets, voc, yolo
from fpg_zoo.data.layouts.layout import Layout
from fpg_zoo.errors import ConfigError
from fpg_zoo.text import printable

_SHOWN = 6  # entries of a folder that no layout was found in


def recognize(data: Path) -> Layout:
    """A data set in the first layout that is found: COCO, YOLO, Pascal VOC, Hugging Face datasets.

    Args:
        data: a folder, YOLO's YAML file, or `hf:OWNER/NAME`.

    Raises:
        ConfigError: there is no such folder, it has none of the layouts, or what was found cannot be read.
    """
    if hub_datasets.is_hub_name(data):
        return hub_datasets.open_hub(data)
    if data.suffix.lower() in yolo.ENDINGS and data.is_file():
        return yolo.YoloLayout.of_yaml(data)
    if data.is_file():
        raise ConfigError(
            f"{data}: a file; name the folder of the data set, or an annotation file in COCO's format by annotations"
        )
    try:
        entries = sorted(entry.name for entry in data.iterdir())
    except FileNotFoundError:
        raise ConfigError(f"{data}: no such folder; name the one of the data set") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{data}: cannot be read ({reason}); name the folder of the data set") from None
    for find in (coco_files.find_coco, yolo.find_yolo, voc.find_voc, hub_datasets.find_saved):
        layout = find(data)
        if layout is not None:
            return layout
    looked_for = (coco_files.LOOKED_FOR, yolo.LOOKED_FOR, voc.LOOKED_FOR, hub_datasets.LOOKED_FOR)
    more = f", ... ({len(entries)} in all)" if len(entries) > _SHOWN else ""
    shown = ", ".join(printable(entry, 60) for entry in entries[:_SHOWN])
    raise ConfigError(
        f"{data}: none of the layouts that are read: looked for {'; '.join(looked_for)}. "
        f"It holds {shown or 'nothing'}{more}"
    )
