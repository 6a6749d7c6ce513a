"""The one place that talks to libvirt: nothing outside this package imports `libvirt`.

`link` keeps a URI connected and runs libvirt's own loop in a thread, `connection` opens, watches and closes, `reader`
takes the observation, `guest_addresses` asks guest agents. Everything here may block, and belongs on a worker's thread
(`fwdaemon.kernel.process`).
"""
