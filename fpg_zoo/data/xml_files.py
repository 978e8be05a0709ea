"""XML of annotation tools: in the encoding that it declares, without document types, and only what is asked for."""

from __future__ import annotations

import codecs
import re
from collections.abc import Set
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from fpg_zoo.data.text_files import unicode_encoding

MAX_XML_BYTES = 16 << 20  # one image's annotations take kilobytes
_DECLARED = re.compile(rb"<\?xml[^>]{0,200}?\sencoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._:-]{0,40})[\"']")
# Of the codecs that Python has, those that are character sets, and not `rot13`, `idna` or `unicode_escape`.
_CHARACTER_SETS = re.compile(
    r"ascii|utf-8|iso8859-\d+|cp\d+|gb2312|gbk|gb18030|hz|big5|big5hkscs|shift_jis\w*|euc_\w+|johab|iso2022_\w+"
    r"|koi8-\w|mac-\w+|tis-620|kz1048|ptcp154"
)
# Programs on Windows declare the older set and write characters of the one that grew out of it.
_GREATER_SETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949"}


class DocumentTypeError(ValueError):
    """The XML declares a document type, whose entities may stand for each other without end."""


class EncodingError(ValueError):
    """The XML is not in the encoding that it declares, or declares one that is not known."""


def decode_xml(content: bytes) -> str:
    """The text of an XML file in the encoding of its byte order mark, or else the declared one, or else UTF-8.

    Raises:
        EncodingError: it is not in this encoding, or no character set is of this name.
    """
    encoding, begin = unicode_encoding(content)
    try:
        if encoding is None:
            declared = _DECLARED.match(content)
            encoding = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
            if encoding.startswith(("utf-16", "utf-32")):
                encoding = "utf-8"  # the declaration itself could not be read if it were true
            if not _CHARACTER_SETS.fullmatch(encoding):
                raise EncodingError
        try:
            return content[begin:].decode(encoding)
        except UnicodeDecodeError:
            return content[begin:].decode(_GREATER_SETS[encoding])
    except (LookupError, UnicodeDecodeError):
        raise EncodingError from None


def parse_xml(text: str, paths: Set[str]) -> Element:
    """The root of an XML file, with the elements below it that are asked for. Nothing else takes memory.

    Args:
        text: of the file. The encoding that it declares is not looked at.
        paths: of the elements to keep, from below the root on, as `object/name`; with those they lie in.

    Raises:
        DocumentTypeError: it declares a document type.
        ValueError, xml.parsers.expat.ExpatError: it is not XML.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    kept: list[str] = []  # the paths of the open elements that are kept, outermost first
    skipped = 0  # how many open elements are not

    def refuse(*_: object) -> None:
        raise DocumentTypeError

    def start(tag: str, _: object) -> None:
        nonlocal skipped
        path = f"{kept[-1]}/{tag}" if len(kept) > 1 else tag
        if skipped or (kept and path not in paths):
            skipped += 1
        else:
            kept.append(path)
            builder.start(tag, {})

    def end(tag: str) -> None:
        nonlocal skipped
        if skipped:
            skipped -= 1
        else:
            kept.pop()
            builder.end(tag)

    def data(piece: str) -> None:
        if not skipped:
            builder.data(piece)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.Parse(text, True)
    return builder.close()
