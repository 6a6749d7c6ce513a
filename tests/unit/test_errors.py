"""What a program that failed said, as one line with what helps."""

import pytest

from fwdaemon.errors import ProcessError

WARNING = "Warning: cannot open /etc/xtables/connlabel.conf: No such file or directory\n"
NFT = """/dev/stdin:1:40-51: Error: Could not process rule: Operation not supported
add rule ip kvm_portfwd every_address_plain ct label set 25 dnat ip to 192.0.2.1
                                            ^^^^^^^^^^^^^^^
"""
IPTABLES = f"{WARNING}iptables-nft-restore: Extension connlabel revision 0 not supported, missing kernel module?\n"


@pytest.mark.parametrize("said", [NFT, IPTABLES])
def test_where_the_kernel_has_no_labels_the_remedy_is_named(said: str) -> None:
    error = str(ProcessError(("nft",), "", 1, said))
    assert "not supported" in error
    assert error.endswith("CONFIG_NF_CONNTRACK_LABELS and CONFIG_NETFILTER_XT_MATCH_CONNLABEL")
    assert "xt_connlabel" in error


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (f"{WARNING}iptables: No chain/target/match by that name.\n", "iptables: No chain/target/match by that name."),
        (WARNING, WARNING.strip()),
        ("\nError: syntax error\nct label 25\n", "Error: syntax error"),
        ("", "it printed nothing"),
    ],
)
def test_the_first_line_says_what_was_wrong(printed: str, said: str) -> None:
    assert str(ProcessError(("iptables-nft", "-S"), "", 2, printed)) == f"iptables-nft -S failed with status 2: {said}"
