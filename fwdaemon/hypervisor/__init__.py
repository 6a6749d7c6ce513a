"""The one place that talks to libvirt: nothing outside this package imports `libvirt`.

`event_loop` runs libvirt's own loop in a thread, `connection` opens, watches and closes, `reader` takes the
observation, `agent` asks guest agents. Everything here may block, and belongs on a worker's thread
(`fwdaemon.kernel.process`).
"""
