"""A process that ends some time after the first signal and writes down when, for the tests of `processes.py`.

Environment: NAME, what it is called; DIARY, the file; SECONDS, how long it takes to end.
"""

import os
import signal
import threading

asked = threading.Event()


def note(what: str) -> None:
    with open(os.environ["DIARY"], "a") as diary:
        diary.write(f"{os.environ['NAME']} {what}\n")


for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: asked.set())
note("ready")
while not asked.wait(0.02):
    pass
note("asked")
threading.Event().wait(float(os.environ["SECONDS"]))
note("ended")
