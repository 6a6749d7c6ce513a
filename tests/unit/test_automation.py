"""Each XML, TOML and option that docs/automation.md shows is read as it is meant, and asks for what its text says."""

import ctypes
import ctypes.util
import re
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final
from uuid import UUID

import libvirt
import pytest

from fwdaemon.config import parse
from fwdaemon.config.metadata import read_metadata
from fwdaemon.config.model import ForwardEntry
from fwdaemon.hypervisor.xml import NAMESPACE, parse_domain
from tests.conftest import give_up
from tests.unit.schemas import matches
from tests.unit.test_documents import code

PAGE: Final = Path(__file__).parents[2] / "docs" / "automation.md"
# What virt-install 4.1 prints for the command of the page with --dry-run --print-xml and --connect test:///default.
PRINTED: Final = (Path(__file__).parent / "samples" / "virt-install-4.1.xml").read_text(encoding="utf-8")
TEXT: Final = PAGE.read_text(encoding="utf-8")
# What a tool that cannot write metadata passes to a style sheet, some of another program among it.
DEFINITION: Final = (
    "<domain type='kvm'><name>ci-7</name><metadata><o:os xmlns:o='urn:o' id='d'/></metadata>"
    "<devices><interface type='network'><source network='default'/></interface></devices></domain>"
)


def asked(definition: str) -> list[tuple[str, ...]]:
    """Give the port strings of each element of a definition, which the schema has to take, too."""
    metadata = parse_domain(definition).metadata
    assert metadata is not None
    (element,) = ET.fromstring(definition).findall(f"metadata/{{{NAMESPACE}}}forwards")  # noqa: S314  it is ours
    assert matches(ET.tostring(element))
    readings = read_metadata(metadata, "ci-7", UUID(int=7))
    assert [reading.problems for reading in readings] == [()] * len(readings)
    entries = [entry for reading in readings for entry in reading.entries if isinstance(entry, ForwardEntry)]
    return [
        (*(str(item.host) for item in entry.mappings), *(f"auto:{item.guest}" for item in entry.auto))
        for entry in entries
    ]


def inside(element: str) -> str:
    """Make a definition of what stands below <metadata>."""
    return f"<domain><name>ci-7</name><metadata>{element}</metadata><devices/></domain>"


def blocks(language: str) -> list[str]:
    return [textwrap.dedent(block) for block in code(TEXT, language)]


def test_every_block_is_of_a_language_that_is_tested_here() -> None:
    assert set(re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)) == {"toml", "sh", "xml", "hcl", "ruby", "yaml"}
    assert [len(blocks(language)) for language in ("toml", "xml", "hcl", "ruby", "yaml")] == [2, 2, 1, 1, 1]


def test_a_whole_definition_asks_for_what_it_shows() -> None:
    definition, _ = blocks("xml")
    assert asked(definition) == [("8080", "auto:22"), ("auto:443",)]


def test_the_style_sheet_adds_to_what_others_have_there() -> None:
    _, sheet = blocks("xml")
    changed = transformed(sheet, DEFINITION)
    assert asked(changed) == [("auto:22", "auto:443")]
    assert "<o:os" in changed
    assert len(parse_domain(changed).interfaces) == len(parse_domain(DEFINITION).interfaces)


def test_what_terraform_is_given_is_the_inside_of_the_metadata() -> None:
    (resource,) = blocks("hcl")
    (element,) = re.findall(r"<<-XML\n(.*?)\n *XML\n", resource, re.DOTALL)
    assert asked(inside(element)) == [("auto:22", "auto:443")]


@pytest.mark.parametrize(("language", "ports"), [("sh", ("8080", "auto:22")), ("ruby", ("auto:22", "auto:80"))])
def test_what_virsh_is_given_becomes_an_element_of_ours(language: str, ports: tuple[str, ...]) -> None:
    """The namespace is what libvirt puts on the element, as it is documented."""
    text = "\n".join(blocks(language))
    assert NAMESPACE in text
    (element,) = re.findall(r"'(<forwards>.*</forwards>)'", text)
    assert asked(inside(element.replace("<forwards>", f"<forwards xmlns='{NAMESPACE}'>"))) == [ports]


def test_what_virt_install_is_given_makes_elements_of_ours() -> None:
    text = "\n".join(blocks("sh"))
    domain = ET.Element("domain")
    for place, key, value in re.findall(r"--xml '\./(\S+)/@(\w+)=([^']+)'", text):
        made(domain, place).set(key, value)
    assert asked(ET.tostring(domain, encoding="unicode")) == [("8080", "auto:22"), ("auto:443",)]
    assert forwards(ET.tostring(domain, encoding="unicode")) == forwards(PRINTED)


def test_libvirt_keeps_what_virt_install_printed() -> None:
    connection = libvirt.open("test:///default")
    try:
        created = connection.createXML(re.sub("<(uuid|emulator)>.*", "", PRINTED)).XMLDesc()
    finally:
        connection.close()
    assert forwards(created) == forwards(PRINTED)
    assert asked(created) == [("8080", "auto:22"), ("auto:443",)]


def forwards(definition: str) -> str:
    """Give our element of a definition, whatever prefix and blanks it is written with."""
    (element,) = ET.fromstring(definition).findall(f"metadata/{{{NAMESPACE}}}forwards")  # noqa: S314  it is ours
    return ET.canonicalize(ET.tostring(element), strip_text=True, rewrite_prefixes=True)


def test_the_drop_in_of_a_task_is_a_file_of_ours() -> None:
    (tasks,) = blocks("yaml")
    (content,) = re.findall(r"^( *)content: \|\n((?:\1  .*\n|\n)+)", tasks, re.MULTILINE)
    parse({Path("/etc/portfwd.toml"): blocks("toml")[0], Path("/etc/portfwd.d/a.toml"): textwrap.dedent(content[1])})


def made(parent: ET.Element, place: str) -> ET.Element:
    """Give the element at a path of names, some with a number; what is missing is made, as virt-install does."""
    for name, number in re.findall(r"([^/\[]+)(?:\[(\d+)\])?", place):
        while len(parent.findall(name)) < int(number or 1):
            ET.SubElement(parent, name)
        parent = parent.findall(name)[int(number or 1) - 1]
    return parent


def transformed(sheet: str, document: str) -> str:
    """Put a document through a style sheet, by libxslt, which Terraform's provider has run as a program."""
    name = ctypes.util.find_library("xslt")
    if name is None:
        give_up("missing libxslt1.1: scripts/prepare installs it")
    library, text = ctypes.CDLL(name), ctypes.CDLL(ctypes.util.find_library("xml2"))
    for function in (text.xmlReadMemory, library.xsltParseStylesheetDoc, library.xsltApplyStylesheet):
        function.restype = ctypes.c_void_p
    read = [
        ctypes.c_void_p(text.xmlReadMemory(it.encode(), len(it.encode()), None, None, 0)) for it in (sheet, document)
    ]
    parsed = ctypes.c_void_p(library.xsltParseStylesheetDoc(read[0]))
    result = ctypes.c_void_p(library.xsltApplyStylesheet(parsed, read[1], None))
    written, length = ctypes.c_char_p(), ctypes.c_int()
    assert library.xsltSaveResultToString(ctypes.byref(written), ctypes.byref(length), result, parsed) == 0
    assert written.value is not None
    return written.value.decode()
