"""Other programs that publish ports, each on a host of its own, measured in turn with ours."""
