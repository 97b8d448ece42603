"""Where the time of a stage goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


class Clock:
    """Seconds by activity, added to those of the runs before: start, training, samples, checkpoints."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._activity = "start"
        self._since = time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())

    def go_on_from(self, seconds: dict[str, float]) -> None:
        """Add what the runs before this one took."""
        for activity, spent in seconds.items():
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent

    def switch(self, activity: str) -> None:
        """From now on time counts as `activity`. Waits for the device, so that its work counts where it was ordered."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.monotonic()
        self.seconds[self._activity] = self.seconds.get(self._activity, 0.0) + now - self._since
        self._activity, self._since = activity, now

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        before = self._activity
        self.switch(activity)
        yield
        self.switch(before)

    def so_far(self) -> dict[str, float]:
        """Seconds by activity up to now, in milliseconds' precision."""
        self.switch(self._activity)
        return {activity: round(seconds, 3) for activity, seconds in self.seconds.items()}
