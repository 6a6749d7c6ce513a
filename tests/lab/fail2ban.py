"""What fail2ban remembers of its bans, so that a test need not wait for an hour."""

from tests.lab.computer import Computer

# Where Debian's own configuration has it.
DATABASE = "/var/lib/fail2ban/fail2ban.sqlite3"
_AGING = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    for table in ("bans", "bips"):
        changed = database.execute(f"UPDATE {table} SET timeofban = timeofban - ?", (int(sys.argv[2]),)).rowcount
print(changed)
"""


def are_aged(computer: Computer, seconds: int) -> bool:
    """Have all bans in its database be older, for its next start; false where there are none yet."""
    return computer.run("python3", "-c", _AGING, DATABASE, str(seconds)).stdout.strip() != "0"
