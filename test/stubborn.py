"""A process that ignores every polite signal, for the tests of `processes.py`."""

import signal
import subprocess
import time

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
print("ready", flush=True)
time.sleep(600)
