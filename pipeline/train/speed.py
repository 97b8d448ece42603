"""How fast a stage runs, against what its devices could do, and what that costs."""

from typing import Any

from pipeline.config.steps import Settings
from pipeline.engine.objective import Objective
from pipeline.engine.peak import Peak, peak
from pipeline.train.processes import Processes

PLANNED_SHARE = 0.45  # of the peak that a run is planned with


class Speedometer:
    """Turns images a second into a share of peak, and images left into dollars.

    `flops` are those of an image, forward and backward; `peak` is that of one device.
    """

    def __init__(self, objective: Objective, settings: Settings, processes: Processes, flops: float) -> None:
        self.flops = flops
        self.peak: Peak = peak(processes.device, objective.precision)
        self._devices, self._price = processes.count, settings.report.dollars_per_hour

    def share_of_peak(self, rate: float) -> float:
        """Of all devices together, at `rate` images a second."""
        return round(rate * self.flops / (self.peak.flops * self._devices), 4)

    def line(self, metrics: dict[str, Any], images_left: int) -> str:
        """What the progress bar says beside its own images a second and time left."""
        rate, loss = metrics["images_per_second"], metrics["loss"]
        parts = [
            "loss -" if loss is None else f"loss {loss:.4f}",  # none where every step was skipped
            f"lr {metrics['learning_rate']:.2g}",
            f"{metrics['share_of_peak']:.1%} of peak",
        ]
        if self._price and rate:
            parts.append(f"{_dollars(self.dollars(images_left / rate))} left")
        return ", ".join(parts)

    def dollars(self, seconds: float) -> float:
        """Of all devices for so long."""
        return seconds * self._devices * self._price / 3600

    def spent(self, seconds: dict[str, float]) -> dict[str, float]:
        """Device-hours and dollars of so many seconds by activity."""
        total = sum(seconds.values())
        return {"device_hours": round(total * self._devices / 3600, 6), "dollars": round(self.dollars(total), 4)}

    def plan(self, images: int) -> dict[str, Any]:
        """Device-hours and dollars for so many images at the share of peak that a run is planned with."""
        hours = images * self.flops / (PLANNED_SHARE * self.peak.flops) / 3600
        return {"share_of_peak": PLANNED_SHARE, "device_hours": round(hours, 6), "dollars": round(hours * self._price, 4)}


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount == 0 or amount >= 0.01 else "under $0.01"
