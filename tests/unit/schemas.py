"""The schema of metadata for editors, applied by libxml2, which libvirt itself needs."""

import ctypes
import ctypes.util
from functools import cache
from pathlib import Path
from typing import Any

import fwdaemon.config


def matches(document: bytes) -> bool:
    """Whether the schema takes an element, as text."""
    read = _libxml().xmlReadMemory(document, len(document), None, None, 32 | 64)
    assert read
    found: int = _libxml().xmlRelaxNGValidateDoc(_libxml().xmlRelaxNGNewValidCtxt(_schema()), read)
    return found == 0


@cache
def _libxml() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("xml2") or "libxml2.so.2")
    for name in ("xmlReadMemory", "xmlRelaxNGNewParserCtxt", "xmlRelaxNGParse", "xmlRelaxNGNewValidCtxt"):
        getattr(library, name).restype = ctypes.c_void_p
    library.xmlReadMemory.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.xmlRelaxNGNewParserCtxt.argtypes = [ctypes.c_char_p]
    library.xmlRelaxNGParse.argtypes = library.xmlRelaxNGNewValidCtxt.argtypes = [ctypes.c_void_p]
    library.xmlRelaxNGValidateDoc.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


@cache
def _schema() -> Any:
    path = Path(fwdaemon.config.__file__).parent / "metadata.rng"
    return _libxml().xmlRelaxNGParse(_libxml().xmlRelaxNGNewParserCtxt(str(path).encode()))
