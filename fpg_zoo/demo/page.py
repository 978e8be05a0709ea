"""The page itself, of Gradio's components; imported only where Gradio is installed."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fpg_zoo.demo import markup
from fpg_zoo.demo.finding import LEAST_SCORE, Filters, Found, Models, Shown
from fpg_zoo.errors import FPGZooError, is_out_of_memory

_CLEANED_EVERY, _KEPT = 600, 3600  # seconds; of uploaded and drawn pictures, and of what a session found
_SESSIONS = 32
_EXAMPLES_A_PAGE = 8
_MAX_FILE_SIZE = "50mb"
_SYSTEM_FONTS = ["system-ui", "sans-serif"]  # others would be fetched from elsewhere
_SYSTEM_MONO = ["ui-monospace", "monospace"]
# Gradio's own gray of secondary texts has a contrast of 2.6 to 1 on white.
_LEGIBLE = {
    f"{name}{scheme}": f"*neutral_{shade}"
    for name in ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color")
    for scheme, shade in (("", 600), ("_dark", 300))
}
_ON_SHOWING = {"api_visibility": "private", "trigger_mode": "always_last"}


def _own(component: Any, preprocess: Callable[[Any, Any], Any]) -> Any:
    """A class of components that takes what the browser sends in its own way.

    Made without Gradio's metaclass, which writes a stub file beside the source of every class of components.
    """
    name = f"Own{component.__name__}"  # the browser takes components of the same name for the same
    return abc.ABCMeta.__new__(type(component), name, (component,), {"is_template": True, "preprocess": preprocess})


# The file is opened where its errors become messages.
_Upload = _own(gr.Image, lambda _, payload: None if payload is None else payload.path)
# Something else may be typed, or nothing.
_Score = _own(gr.Slider, lambda _, payload: min(max(payload or LEAST_SCORE, LEAST_SCORE), 1.0))


def build_page(models: Models, examples: Sequence[Path], note: str | None = None) -> Any:
    """The page as `gradio.Blocks`, to be launched with `launch_options`.

    Args:
        models: to choose from.
        examples: image files.
        note: what to say about the choice of models.
    """

    def detect(
        file: str | None, model: str, score: float, labels: list[int], boxes: bool, masks: bool
    ) -> tuple[Any, ...]:
        if file is None:
            return None, None, "", "", gr.update(choices=[], value=[]), gr.update()
        try:
            found = models.find(Path(file), model)
        except FPGZooError as error:
            return _failed(str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _failed("not enough memory for this picture and model; take smaller ones")
        classes = found.classes
        still = [label for label in labels if label in {place for _, place in classes}]
        shown = found.shown(Filters(score, frozenset(still), boxes, masks))
        return (
            found,
            *_outputs(found, shown),
            gr.update(choices=classes, value=still),
            gr.update(interactive=found.has_masks),
        )

    def redraw(found: Found | None, score: float, labels: list[int], boxes: bool, masks: bool) -> tuple[Any, ...]:
        if found is None:
            return gr.skip(), gr.skip(), gr.skip()
        return _outputs(found, found.shown(Filters(score, frozenset(labels), boxes, masks)))

    with gr.Blocks(
        title="Feature Pyramid Grids", analytics_enabled=False, delete_cache=(_CLEANED_EVERY, _KEPT)
    ) as page:
        state = gr.State(time_to_live=_KEPT)
        gr.HTML(markup.heading())
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = _Upload(type="filepath", label="Picture", height=300, elem_id="picture")
                model = gr.Dropdown(models.names, value=models.names[0], label="Model", info=note, elem_id="model")
                gr.Examples([[str(file)] for file in examples], picture, examples_per_page=_EXAMPLES_A_PAGE)
            with gr.Column(scale=3, min_width=300):
                drawn = gr.Image(
                    label="Detections", interactive=False, buttons=["download", "fullscreen"], elem_id="drawn"
                )
                summary = gr.HTML(elem_id="summary")
                score = _Score(LEAST_SCORE, 1, 0.3, step=0.01, label="Least score", elem_id="score")
                classes = gr.Dropdown([], multiselect=True, label="Classes (all, if none is chosen)", elem_id="classes")
                with gr.Row():
                    boxes = gr.Checkbox(True, label="Boxes and names", elem_id="boxes")
                    masks = gr.Checkbox(True, label="Masks", elem_id="masks")
                table = gr.HTML(elem_id="table")
        filters = [score, classes, boxes, masks]
        gr.on(
            [picture.change, model.input],
            detect,
            [picture, model, *filters],
            [state, drawn, summary, table, classes, masks],
            concurrency_limit=1,
            show_progress_on=[drawn],
            **_ON_SHOWING,
        )
        gr.on(
            [each.input for each in filters],
            redraw,
            [state, *filters],
            [drawn, summary, table],
            show_progress="hidden",
            **_ON_SHOWING,
        )
    return page.queue(max_size=_SESSIONS)


def launch_options() -> dict[str, Any]:
    """Of `gradio.Blocks.launch`: the looks; nothing of the page goes elsewhere or is asked for from elsewhere."""
    return {
        "theme": gr.themes.Default(font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO).set(**_LEGIBLE),
        "css": markup.STYLE,
        "footer_links": [],
        "max_file_size": _MAX_FILE_SIZE,
        "state_session_capacity": _SESSIONS,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "quiet": True,
    }


def _outputs(found: Found, shown: Shown) -> tuple[Any, str, str]:
    return shown.picture, markup.summary(found, shown), markup.table(found, shown)


def _failed(message: str) -> tuple[Any, ...]:
    return None, None, markup.problem(message), "", gr.update(choices=[], value=[]), gr.update()
