"""Entry point for openmm-ml: ``MLPotential("cgml", modelPath="model.pt")``.

openmm-ml imports the modules of all its entry points whenever it is imported, and an error in one
of them breaks it for everyone. So this one imports nothing but the errors until a potential is
made, and its classes are no subclasses of openmm-ml's: they only have the methods that it calls.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .system import Model

_MODEL_OPTIONS = ("modelPath", "molecule", "trust")
_FORCE_OPTIONS = ("backend", "copies", "checkNames", "scaleParameter")
#: Options that openmm-ml's own potentials have.
_ELSEWHERE = {
    "device": "a model runs on the device of the Context's Platform; choose it by the Platform's "
    "properties",
    "precision": "the network computes in float32",
    "linkAtomDistances": "a model has no link atoms; take whole molecules as the ML subset",
}


class CGMLPotentialImplFactory:
    """What openmm-ml makes of the entry point; it calls `createImpl`."""

    def createImpl(self, name: str, **args: Any) -> "CGMLPotentialImpl":
        """Return the potential.

        Args:
            name: under which it is registered.
            args: ``modelPath``, the model file, and optionally ``molecule`` (of a transferable
                model) and ``trust``, both as in `openmm_cgml.load_model`.

        Raises:
            InputError: if an option is unknown, or the file cannot be loaded.
        """
        _require_known(args, _MODEL_OPTIONS, f'MLPotential("{name}")')
        if args.get("modelPath") is None:
            raise InputError(
                f'MLPotential("{name}") has no model; give modelPath="model.pt", a file that '
                "save_model() wrote"
            )
        from .system import load_model

        model = load_model(
            args["modelPath"], args.get("molecule"), trust=bool(args.get("trust", False))
        )
        return CGMLPotentialImpl(model)


class CGMLPotentialImpl:
    """A model as openmm-ml uses it.

    Args:
        model: the model.
    """

    def __init__(self, model: "Model") -> None:
        self.model = model

    def addForces(
        self,
        topology: Any,
        system: Any,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the PMF to a System; the arguments of ``createSystem`` arrive here.

        Where the System is all the model's, its particles also get the masses of the beads: those
        that openmm-ml takes from elements are other, or 0 for beads, which would freeze them. In
        a mixed System the masses are those of the System that was given.

        Args:
            topology: openmm.app.Topology whose atoms are the beads, copy after copy. If it has a
                box, or the System uses one, distances are those to the nearest image.
            system: openmm.System that gets the Force; changed.
            atoms: the beads' indices; None: all.
            forceGroup: 0 to 31.
            args: ``backend`` and ``copies`` as in `Model.create_force`, ``scaleParameter``, its
                scale_parameter, and ``checkNames=False``, which only counts the beads.

        Raises:
            InputError: if an option is unknown, or the atoms are not the model's beads.
            BackendError: if the backend asked for does not work here.
        """
        _require_known(args, _FORCE_OPTIONS, "createSystem()")
        copies = args.get("copies", 1)
        chosen = list(topology.atoms())
        if atoms is not None:
            atoms = [int(index) for index in atoms]
            if atoms and not 0 <= min(atoms) <= max(atoms) < len(chosen):
                raise InputError(
                    f"atoms has index {min(atoms)} to {max(atoms)}, but the topology has "
                    f"{len(chosen)} atoms; give indices of these"
                )
            chosen = [chosen[index] for index in atoms]
        self._require_beads(chosen, copies, names=args.get("checkNames", True))
        periodic = (
            topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        )
        system.addForce(
            self.model.create_force(
                particles=atoms,
                copies=copies,
                force_group=forceGroup,
                periodic=periodic,
                backend=args.get("backend"),
                scale_parameter=args.get("scaleParameter"),
            )
        )
        if atoms is None:
            for index, mass in enumerate(self.model.topology.masses * copies):
                system.setParticleMass(index, mass)

    def getMLLongRange(self) -> bool:
        """Return that nothing acts between periodic images."""
        return False

    def getSupportedEmbeddings(self) -> list[str]:
        """Return that there are no embeddings besides openmm-ml's."""
        return []

    def _require_beads(self, atoms: Sequence[Any], copies: int, names: bool) -> None:
        """Refuse atoms that are not the beads of so many copies."""
        top = self.model.topology
        name, beads = self.model.file.name, len(top)
        if int(copies) != copies or copies < 1:
            raise InputError(f"copies is {copies}; give a whole number of at least 1")
        if len(atoms) != copies * beads:
            raise InputError(
                f"there are {len(atoms)} atoms to be modelled by {name}, which has "
                + (f"{copies} x " if copies > 1 else "")
                + f"{beads} beads ({top.label(0)}, ...); "
                + _remedy(len(atoms), beads)
            )
        if not names:
            return
        for index, atom in enumerate(atoms):
            bead = index % beads
            if (atom.residue.name, atom.name) != (top.residue_names[bead], top.bead_names[bead]):
                raise InputError(
                    f"atom {atom.index} is {atom.residue.name}{atom.residue.id}-{atom.name}, "
                    f"where {name} has bead {bead}, {top.label(bead)}; give the beads in the "
                    "model's order (load_model(...).topology.to_openmm() is such a topology), or, "
                    "if only names differ, checkNames=False"
                )


def _remedy(found: int, beads: int) -> str:
    """Return what to do about another number of atoms than of beads."""
    if found and found % beads == 0:
        return (
            f"for {found // beads} copies that do not feel each other, one after the other, give "
            f"copies={found // beads}"
        )
    return (
        "give the topology of the beads, not of the atoms, and of a mixed System whole molecules: "
        "for each bond between the ML subset and the rest openmm-ml adds an atom of its own"
    )


def _require_known(given: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    """Refuse options that nothing here would follow."""
    for name in given:
        if name not in known:
            why = _ELSEWHERE.get(name, f"it has {', '.join(known)}")
            raise InputError(f"{what} of a coarse-grained model has no option {name!r}: {why}")
