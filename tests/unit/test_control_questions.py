"""What clients ask of the whole host: answered by another process, within bounds, and nothing is written."""

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.commands.answer import answer, serve
from fwdaemon.control.listener import Peer
from fwdaemon.control.manager import Questions
from fwdaemon.control.protocol import CONFIGURATION_REFUSED, INVALID_PARAMETER, MANAGER, REFUSED, CallError
from tests.unit.test_config_support import forward
from tests.unit.varlink_types import Interface

INTERFACE = Interface(MANAGER)
HEAD = '[daemon]\nlibvirt = "test:///default"\n'
ROOT, MEMBER = Peer(1, 0, frozenset({0})), Peer(2, 1000, frozenset({1000}))
CONFLICTS = "fwdaemon.commands.check.conflicts_if_running"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a host of which only libvirt's test driver is looked at; its directory is its user's alone."""
    monkeypatch.setattr(CONFLICTS, lambda *_: ([], None))
    monkeypatch.setattr("fwdaemon.config.loader.unguarded", lambda _files: [])
    (tmp_path / "portfwd.d").mkdir()
    path = tmp_path / "portfwd.toml"
    path.write_text(HEAD + forward())
    return path


def asked(path: Path, name: str, **parameters: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(answer(path, name, parameters)))
    shape = INTERFACE.errors[content["error"].rpartition(".")[2]] if "error" in content else INTERFACE.replies[name]
    assert list(INTERFACE.faults(shape, content["parameters"])) == []
    return content


async def called(questions: Questions, name: str, parameters: Mapping[str, Any], peer: Peer = ROOT) -> Any:
    method = questions.methods()[name]
    method.check(parameters)
    assert method.to is not None
    return json.loads(await method.to(parameters, peer))


def test_a_drop_in_is_checked_before_it_is_written(main: Path) -> None:
    right = asked(main, "Check", drop_in="page.toml", text=forward(ports='["8081:80"]'))
    assert right["parameters"] == {"problems": [], "warnings": [], "unchecked": None}
    wrong = asked(main, "Check", drop_in="page.toml", text=forward() + forward(ports='["0"]'))["parameters"]["problems"]
    assert {problem["file"] for problem in wrong} == {str(main.parent / "portfwd.d/page.toml")}
    assert list((main.parent / "portfwd.d").iterdir()) == []


def test_a_drop_in_is_checked_as_if_it_were_not_there(main: Path) -> None:
    (main.parent / "portfwd.d/page.toml").write_text("nonsense = 1")
    assert len(asked(main, "Check")["parameters"]["problems"]) == 1
    assert asked(main, "Check", drop_in="page.toml")["parameters"]["problems"] == []
    assert asked(main, "Check", drop_in="page.toml", text=forward(ports='["81"]'))["parameters"]["problems"] == []


@pytest.mark.parametrize("text", ["\ud800", "\x00", "[" * 9000, "\ufeff", "a = 1e999999", 'ports = "\x1b[2J"'])
def test_a_hostile_text_is_a_problem_of_the_drop_in(main: Path, text: str) -> None:
    found = asked(main, "Check", drop_in="page.toml", text=text)["parameters"]["problems"]
    assert {problem["file"] for problem in found} == {str(main.parent / "portfwd.d/page.toml")}


@pytest.mark.parametrize(
    "name",
    ["../portfwd.toml", "/etc/passwd.toml", ".hidden.toml", "page", "page.toml\n", "p\0.toml", "é.toml", ".toml"],
)
def test_a_drop_in_has_a_plain_name(main: Path, name: str) -> None:
    with pytest.raises(CallError, match=INVALID_PARAMETER):
        asyncio.run(called(Questions(lambda: main), "Check", {"drop_in": name}))


@pytest.mark.parametrize(
    "parameters",
    [{}, {"connection": 80}, {"connection": None}, {"connection": ":80", "source": []}, {"connection": ":80", "x": 1}],
)
def test_parameters_of_another_type_are_refused(main: Path, parameters: Mapping[str, Any]) -> None:
    with pytest.raises(CallError, match=INVALID_PARAMETER):
        asyncio.run(called(Questions(lambda: main), "Explain", parameters))


@pytest.mark.parametrize("connection", ["", ":0", ":80; rm -rf /", "\ud800:80", "--config=/x", "[::1:80", "9" * 60000])
def test_words_that_are_no_connection_are_refused(main: Path, connection: str) -> None:
    refused = asked(main, "Explain", connection=connection)
    assert refused["error"] == REFUSED
    assert refused["parameters"]["reasons"][0].isprintable()


def test_no_plan_is_made_of_a_wrong_configuration(main: Path) -> None:
    refused = asked(main, "Plan", drop_in="page.toml", text="nonsense = 1")
    assert refused["error"] == CONFIGURATION_REFUSED
    assert len(refused["parameters"]["problems"]) == 1


def test_what_an_entry_can_name_is_listed(main: Path) -> None:
    """Libvirt's test driver has one domain and one network."""
    found = asked(main, "Inventory")["parameters"]
    assert [(domain["name"], domain["running"]) for domain in found["domains"]] == [("test", True)]
    assert [(network["name"], network["active"]) for network in found["networks"]] == [("default", True)]
    assert {"address": "127.0.0.1", "interface": "lo", "outside": False} in found["addresses"]


def test_a_process_answers_line_by_line(main: Path) -> None:
    answers = io.StringIO()
    questions = [json.dumps(["Explain", {"connection": connection}]) for connection in ("", "x")]
    serve(main, questions, answers)
    assert [json.loads(line)["error"] for line in answers.getvalue().splitlines()] == [REFUSED, REFUSED]


def test_each_question_has_a_process_of_its_own_and_few_may_wait(main: Path) -> None:
    async def scene() -> None:
        questions = Questions(lambda: main)
        asking = [asyncio.ensure_future(called(questions, "Explain", {"connection": ""}, MEMBER)) for _ in range(5)]
        asking.append(asyncio.ensure_future(called(questions, "Check", {"drop_in": "page.toml", "text": "x"})))
        *members, root = await asyncio.gather(*asking, return_exceptions=True)
        said = [str(answered) for answered in members]
        assert ["ask again soon" in text for text in said] == [False] * 4 + [True]
        assert "write one such as" in said[0]
        assert isinstance(root, dict)
        assert root["problems"]
        await questions.close(5.0)

    asyncio.run(scene())
