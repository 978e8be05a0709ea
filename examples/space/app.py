"""The demo as a Space of the Hugging Face hub; `python app.py` runs it anywhere."""

from __future__ import annotations

import os

from fpg_zoo.demo.serve import PORT, serve


def main() -> None:
    # A Space is reached from outside its container; these two are Gradio's own variables, which Spaces may set.
    serve(
        host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", PORT)),
        started=lambda url: print(f"serving {url}", flush=True),
    )


if __name__ == "__main__":
    main()
