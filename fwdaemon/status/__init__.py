"""What the daemon reports about itself: to the control socket, to systemd and on a terminal."""
