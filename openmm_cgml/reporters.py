"""Let OpenMM's own reporters, and anything like them, watch an engine's Context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class ReporterHost:
    """What OpenMM's reporters expect of an ``openmm.app.Simulation``, for an engine's Context.

    Attributes:
        context, system, integrator: OpenMM's.
        currentStep: steps done.
        reporters: OpenMM reporters, or anything with ``describeNextReport`` and ``report``.
    """

    def __init__(
        self, context: Any, system: Any, integrator: Any, topology: Any, reporters: list[Any]
    ) -> None:
        self.context, self.system, self.integrator = context, system, integrator
        self.currentStep = 0
        self.reporters = reporters
        self._topology = topology

    @property
    def topology(self) -> Any:
        """The openmm.app.Topology of all copies; made when first asked for."""
        if callable(self._topology):
            self._topology = self._topology()
        return self._topology

    def saveCheckpoint(self, file: Any) -> None:
        """Write OpenMM's checkpoint, as `CheckpointReporter` asks for."""
        blob = self.context.createCheckpoint()
        if hasattr(file, "write"):
            file.write(blob)
        else:
            Path(file).write_bytes(blob)

    def saveState(self, file: Any) -> None:
        """Write OpenMM's State as XML."""
        import openmm

        state = self.context.getState(
            getPositions=True, getVelocities=True, getParameters=True, getIntegratorParameters=True
        )
        text = openmm.XmlSerializer.serialize(state)
        if hasattr(file, "write"):
            file.write(text)
        else:
            Path(file).write_text(text)

    def next_report(self) -> int | None:
        """Return the steps until some reporter wants its report; None without reporters."""
        return min((int(_wish(r, self)[0]) for r in self.reporters), default=None)

    def report(self, due: Sequence[Any]) -> None:
        """Let the reporters that are due report."""
        for reporter, wish in due:
            state = self.context.getState(
                getPositions=bool(wish[1]),
                getVelocities=bool(wish[2]),
                getForces=bool(wish[3]),
                getEnergy=bool(wish[4]),
                enforcePeriodicBox=bool(wish[5]),
            )
            reporter.report(self, state)

    def due_in(self, steps: int) -> list[tuple[Any, Any]]:
        """Return the reporters, with their wishes, that are due after so many steps."""
        wanted = [(r, _wish(r, self)) for r in self.reporters]
        return [(r, w) for r, w in wanted if w[0] == steps]


def _wish(reporter: Any, host: ReporterHost) -> tuple[Any, ...]:
    """Return (steps, positions, velocities, forces, energy, wrap) of a reporter."""
    wish = reporter.describeNextReport(host)
    if isinstance(wish, dict):
        include = wish.get("include", [])
        wanted = [name in include for name in ("positions", "velocities", "forces", "energy")]
        return (wish["steps"], *wanted, bool(wish.get("periodic")))
    return (*wish, *[False] * (6 - len(wish)))
