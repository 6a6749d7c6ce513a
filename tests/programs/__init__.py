"""What starts other programs and needs no root: shells, linters of scripts, a run of tests, processes to measure."""
