"""`python -m fwdaemon` is the `kvm-portfwd` program."""

import sys

from fwdaemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
