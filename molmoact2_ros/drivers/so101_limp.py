"""An SO-100/101 that is moved by hand: its joints are read, and nothing is ever written to its servos."""

from __future__ import annotations

from typing import Any

from molmoact2_ros.drivers.driver import Array, DriverError
from molmoact2_ros.drivers.so101 import So101Driver


class LimpSo101(So101Driver):
    """See `Driver`. Invariant: no servo gets torque, loses it, or a goal."""

    def _power(self, follower: Any, port: str) -> None:
        """Leave the servos as they are.

        Raises:
            DriverError: they hold the arm; to let go of it from here would let it fall.
        """
        if any(follower.bus.sync_read("Torque_Enable", normalize=False).values()):
            raise DriverError(
                f"the servos of the arm on {port} hold it, and it is to be moved by hand: support it, switch its "
                "power off and on again, and start this anew; if its driver runs, end that first"
            )

    def write(self, positions: Array) -> None:
        """Never.

        Raises:
            DriverError: always.
        """
        raise DriverError("this arm is moved by hand; it takes no commands")

    def close(self) -> None:
        """See `Driver`; the servos stay as they are."""
        self.disconnect()
