"""A bash hook's file for one domain is read as text; nothing in it is run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.importing.findings import Findings
from fwdaemon.importing.ports_script import parse_ports_script
from tests.unit.imports import FILE, accepted, forwards, warnings

PLAIN = "PUBLIC_IP=198.51.100.1\nPRIVATE_IP=192.168.122.10\nPORTS=tcp:80,udp:53\n"


def found(text: str, name: str | None = "web") -> Findings:
    return parse_ports_script(FILE, text, name)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        "#!/bin/bash\n# web\n" + PLAIN,
        'PUBLIC_IP=\'198.51.100.1\'\nexport PRIVATE_IP="192.168.122.10" # here\nPORTS="tcp:80, udp:53"',
        "PUBLIC_IP = 198.51.100.1\nPRIVATE_IP = 192.168.122.10\nPORTS = tcp:80 UDP:53  # two",
        "PUBLIC_IP=198.51.100.1; PRIVATE_IP=192.168.122.10; PORTS='tcp:80\n  udp:53'\n",
    ],
)
def test_quotes_spaces_comments_and_export(text: str) -> None:
    findings = found(text)
    line = 1 + text.split("PORTS", maxsplit=1)[0].count("\n")
    assert forwards(findings) == [
        f"web 198.51.100.1:80/tcp -> 192.168.122.10:80 at {line}",
        f"web 198.51.100.1:53/udp -> 192.168.122.10:53 at {line}",
    ]
    assert warnings(findings) == []


def test_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    findings = found(f"touch {trap}\n{PLAIN}X=$(touch {trap})\nPORTS=$(touch {trap})\n")
    assert not trap.exists()
    assert forwards(findings) == []
    assert [warning.split(":")[0] for warning in warnings(findings)] == ["1", "5", "6"]


def test_of_two_values_the_last_counts_as_in_a_shell() -> None:
    findings = found(PLAIN + "PORTS=tcp:443")
    assert forwards(findings) == ["web 198.51.100.1:443/tcp -> 192.168.122.10:443 at 4"]
    assert warnings(findings) == ["3: PORTS left out: line 4 sets it again"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("icmp:8", '"icmp" is not tcp, udp or sctp'),
        ("tcp", "it is not of the form tcp:80"),
        ("80", "it is not of the form tcp:80"),
        ("tcp:8080:80", "it is not of the form tcp:80"),
        ("tcp:0", "it is not of the form tcp:80"),
        ("tcp:$PORT", "it is not of the form tcp:80"),
    ],
)
def test_what_is_no_port_is_left_out_with_a_warning(word: str, said: str) -> None:
    findings = found(PLAIN.replace("udp:53", word))
    assert forwards(findings) == ["web 198.51.100.1:80/tcp -> 192.168.122.10:80 at 3"]
    assert warnings(findings) == [f'3: "{word}" left out: {said}']


def test_without_a_public_address_it_is_every_address_and_says_so() -> None:
    findings = found(PLAIN.removeprefix("PUBLIC_IP=198.51.100.1\n"))
    assert forwards(findings)[0] == "web *:80/tcp -> 192.168.122.10:80 at 2"
    assert warnings(findings) == ["1: has no PUBLIC_IP; the forwards answer on every address of the host"]


@pytest.mark.parametrize("key", ["PUBLIC_IP", "PRIVATE_IP"])
def test_with_an_address_that_is_none_nothing_is_imported(key: str) -> None:
    findings = found(f"{PLAIN}{key}=$OTHER\n")
    assert forwards(findings) == []
    assert any('"$OTHER" is not an IP address' in warning for warning in warnings(findings))


def test_without_a_usable_name_the_address_tells_the_domain() -> None:
    assert [entry.domain for entry in accepted([found(PLAIN, None)]).forwards] == ["web"]
    assert [entry.domain for entry in accepted([found(PLAIN, "\udcff")]).forwards] == ["web"]


PART = st.sampled_from(
    ["PUBLIC_IP=", "PRIVATE_IP=", "PORTS=", "export ", '"', "'", "\n", "#", ";", "tcp:80", "1.2.3.4"]
)


@given(st.lists(PART | st.text(max_size=5), max_size=20).map("".join), st.none() | st.text(max_size=9))
def test_any_text_gives_a_configuration_that_is_accepted(text: str, name: str | None) -> None:
    accepted([found(text, name)])


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("", "for p in $PORTS; do\n iptables -s 203.0.113.0/24 -p tcp --dport ${p#*:} -j DNAT\ndone\n", 4),
        ('if [ "$1" = web ]; then\n', "fi\n", 1),
        ("", ". /etc/local.conf\n", 4),
        ("", "unset PORTS\n", 4),
        ("", "PORTS+=' tcp:22'\n", 4),
        ("", "PORTS=$(choose)\n", 4),
        ("", "PORTS=(80 443)\n", 4),
        ("", "PORTS=tcp:80 udp:53\n", 4),
        ("", 'PORTS="${WEB:+tcp:80 tcp:22 }"\n', 4),
        ("", "X=1 unset PORTS\n", 4),
        ("", "X=1 && unset PORTS\n", 4),
        ("X=1\\\n", "", 1),
        ("", "X=1; unset PORTS\n", 4),
        ("", 'PORTS= "tcp:80"\n', 4),
        ("", "PORTS=tcp:80#,tcp:22\n", 4),
        ("", "PORTS='tcp:80'#,tcp:22\n", 4),
        ("", "export PORTS = tcp:80\n", 4),
        ('X="\\"\n', 'Y="\n', 1),
        ("set -n\n", "", 1),
        ("cat <<END\n", "END\n", 1),
    ],
)
def test_nothing_is_live_where_a_line_may_forward_less(before: str, after: str, line: int) -> None:
    findings = found(before + PLAIN + after)
    assert findings.forwards
    for forward in findings.forwards:
        assert forward.reason.startswith(f"what line {line} does is not known")
    assert any(warning.startswith(f"{line}: left out: ") for warning in warnings(findings))


@pytest.mark.parametrize(
    "line", ["set -eu", "set -euo pipefail", "export PRIVATE_IP PORTS", "DOMAIN=web", "X='a b'", "X = a b"]
)
def test_what_changes_no_assignment_does_no_harm(line: str) -> None:
    findings = found(f"#!/bin/bash\n{line}\n{PLAIN}{line}\n")
    assert len(findings.forwards) == 2
    assert [forward.reason for forward in findings.forwards] == ["", ""]
