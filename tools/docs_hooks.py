"""What the documentation site has beside `docs/*.md`: notebooks, changes, how to contribute, the command's options.

mkdocs calls the functions `on_...` (`hooks` in `mkdocs.yml`). Nothing here needs torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "fpg_zoo/cli/__init__.py"
OTHER_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", COMMAND: "api/command.md"}
# Text and target of a link or an image; the target is neither a URL nor a place on the same page.
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_TITLE = re.compile(r"^# ([^:\n]+)", re.MULTILINE)
_FETCHED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?(?:https?:)?//[^>]*>'
    r'|<link\b(?![^>]*\brel="?(?:canonical|prev|next))[^>]*\bhref="?(?:https?:)?//[^>]*>'
)
_log = logging.getLogger("mkdocs.plugins.docs_hooks")  # a warning to a logger below `mkdocs` fails a strict build


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for source, page in made_pages().items():
        files.append(File.generated(config, page, content=_content(source)))
    return files


def _content(source: str) -> str:
    if source == COMMAND:
        return command_to_markdown()
    text = (ROOT / source).read_text(encoding="utf-8")
    return notebook_to_markdown(text) if source.endswith(".ipynb") else text


def made_pages() -> dict[str, str]:
    """Pages of the site by the files of the repository, outside `docs/`, that they are made of."""
    notebooks = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    return OTHER_PAGES | {f"examples/notebooks/{file.name}": f"tutorials/{file.stem}.md" for file in notebooks}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links are written for readers of the repository: those that lead out of `docs/` go to a page, or become text."""
    made = made_pages()
    here = page.file.src_uri
    source = next((source for source, name in made.items() if name == here), f"docs/{here}")

    def replace(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        is_name = posixpath.basename(text.strip("`")) == posixpath.basename(path)
        there = files.get_file_from_path(made.get(path, path.removeprefix("docs/")))
        if there is None:
            if not (ROOT / path).exists():
                return match[0]  # mkdocs warns of it
            return f"`{path}`" if is_name else f"{text} (`{path}`)"
        if is_name and not image:
            text = _title(there)
        return f"{image}[{text}]({posixpath.relpath(there.src_uri, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(replace, markdown)


def _title(page: File) -> str:
    """A page's first heading, up to a colon."""
    title = _TITLE.search(page.content_string)
    return title[1] if title else page.src_uri


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    for tag in _FETCHED.findall(output):
        _log.warning("%s would fetch from elsewhere: %s", page.file.src_uri, tag)
    return output


def notebook_to_markdown(text: str) -> str:
    """A notebook's cells as a page, with what they gave when they were run."""
    return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell_parts(cell))


def _cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield _output("".join(output["text"]))
            continue
        data = output["data"]
        if "image/jpeg" in data:
            encoded = "".join(data["image/jpeg"]).replace("\n", "")
            yield f'<img class="output" alt="what the cell draws" src="data:image/jpeg;base64,{encoded}">'
        elif "text/html" in data:
            yield f'<div class="output">{"".join(data["text/html"])}</div>'
        else:
            yield _output("".join(data["text/plain"]))


def _output(text: str) -> str:
    return f"```{{ .text .output .no-copy }}\n{text.rstrip()}\n```"


def command_to_markdown() -> str:
    """Every command with its options, as `--help` has them."""
    sys.path.insert(0, str(ROOT))
    from fpg_zoo.cli import build_parser

    parser = build_parser()
    return "\n\n".join(["# The command line", str(parser.description), *_command_parts(parser)])


def _command_parts(parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield f"## `{command.prog}`"
                yield _sentence(about[name] or "")
                yield command.description or ""
                yield from _command_parts(command)
        elif not isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
            rows.append(f"| {_names(action)} | {_meaning(action, parser)} |")
    if rows:
        yield "| argument | meaning |\n| --- | --- |\n" + "\n".join(rows)


def _names(action: argparse.Action) -> str:
    metavar = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if action.nargs in ("+", "*"):
        value += " ..."
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{name}{takes}`" for name in action.option_strings)


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].replace("%%", "%") + "."
