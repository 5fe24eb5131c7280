"""Which beads of capped alanine say the most, and do W, E - TS and atomistic weights agree?

All 22 atoms, no constraints, 300 K, implicit solvent: u is itself a free energy of the solvent.

1. Four maps of five beads each are ranked by h(c | R), what they leave open of held-out frames,
   with errors of the differences, frame by frame.
2. On the backbone's beads E_q[u] - T S_q against W = -kT ln E_q[exp(-u / kT) / q]: the first is
   the larger, by kT times the relative entropy of the split-flow. W does not depend on q: another
   split-flow, trained for a fifth as long, must give the same.
3. A flow of the beads, learned from the weighted run, and the split-flow are a Boltzmann generator
   of the atoms: effective samples, and the energy of the weighted ones against the run's.

Needs CGML_DATA or ``../shared/data``; ``--quick`` takes the package's frames, heavy atoms and
springs for u. CGML_MODELS as of ``benchmarks.backmapping``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.backmapping import DATA, SOURCE, Case, alanine, packaged, trained
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.atomistic import system_energies
from openmm_cgml.backmapping import BeadFrames
from openmm_cgml.entropy import differences
from openmm_cgml.flow.fiber import FiberFlow, Solver
from openmm_cgml.mapping.core import Mapping, com_mapping, slice_mapping
from openmm_cgml.topology import bond_separations
from openmm_cgml.units import thermal_energy

SEED = 0
#: Frames that maps are ranked on; frames and samples of each for W; structures that are weighted.
RANKED, FRAMES, SAMPLES, WEIGHED = 300, 4, 48, 192


def _chosen(topology: Any, names: list[str]) -> list[int]:
    labels = [f"{a.residue.name}-{a.name}" for a in topology.atoms]
    return [labels.index(name) for name in names]


def peptide_groups(topology: Any) -> Mapping:
    """Return centres of mass of methyl, the two peptide planes, CA with CB, and methyl."""
    groups = [
        ["ACE-H1", "ACE-CH3", "ACE-H2", "ACE-H3"], ["ACE-C", "ACE-O", "ALA-N", "ALA-H"],
        ["ALA-CA", "ALA-HA", "ALA-CB", "ALA-HB1", "ALA-HB2", "ALA-HB3"],
        ["ALA-C", "ALA-O", "NME-N", "NME-H"], ["NME-C", "NME-H1", "NME-H2", "NME-H3"],
    ]  # fmt: skip
    indices = [_chosen(topology, group) for group in groups]
    return com_mapping(topology, indices, names=["A", "B", "C", "D", "E"], name="groups")


def rim(topology: Any) -> Mapping:
    """Return the atoms at the rim: both caps' methyls, the oxygens and CB."""
    names = ["ACE-CH3", "ACE-O", "ALA-CB", "ALA-O", "NME-C"]
    return slice_mapping(topology, _chosen(topology, names), name="rim")


def residue(topology: Any) -> Mapping:
    """Return the alanine residue's own heavy atoms."""
    names = ["ALA-N", "ALA-CA", "ALA-CB", "ALA-C", "ALA-O"]
    return slice_mapping(topology, _chosen(topology, names), name="residue")


#: Name -> map of 22 atoms to five beads, and whether frames are weighted: the backbone resolves
#: phi and psi, along which the run was biased, so that q(c | R) is the same without.
MAPS: dict[str, tuple[Any, bool]] = {
    "backbone": ("backbone", False), "groups": (peptide_groups, True), "rim": (rim, True),
    "residue": (residue, True),
}  # fmt: skip

Energy = Callable[[np.ndarray], np.ndarray]


def run(quick: bool) -> Outcome:
    """Rank the maps, close W = E - TS, and weigh structures."""
    torch.set_num_threads(1)
    case = packaged() if quick else alanine()
    flow, _ = trained("alanine", case, keep=not quick)
    short = replace(case, fit={**case.fit, "epochs": 1 if quick else case.fit["epochs"] // 5})
    other, _ = trained("alanine-short", short, keep=not quick)
    energy = springs(case) if quick else force_field()
    targets, details = closure(flow, other, case, energy, quick)
    if not quick:
        for part in (ranking(flow), generator(flow, energy)):
            targets += part[0]
            details |= part[1]
    return Outcome(targets, SEED, details)


# ---------------------------------------------------------------- 1: which map


def ranking(backbone: FiberFlow) -> tuple[list[Target], dict[str, Any]]:
    """Return what each map leaves open more than the best, nats."""
    flows = {"backbone": backbone}
    for name, (mapping, weighted) in MAPS.items():
        if name not in flows:
            flows[name] = trained(f"alanine-{name}", alanine(mapping, weighted))[0]
    with np.load(DATA / "ala2" / "wtmetad_unconstrained.npz") as stored:
        positions, weights = (stored[k][16000:].astype(float) for k in ("positions", "weights"))
    chosen = np.random.default_rng(SEED).choice(
        len(positions), RANKED, replace=False, p=weights / weights.sum()
    )
    # Random directions are right on average, which is all that a ranking takes.
    ranked = cgml.compare_mappings(
        flows, positions[np.sort(chosen)], density="hutchinson", solver=Solver(steps=10),
        samples=2, seed=SEED,
    )  # fmt: skip
    targets, details = [], {}
    for one, (more, error) in zip(ranked, differences(ranked), strict=True):
        print(one.text(), flush=True)
        details[one.name] = {"data": one.data.record(), "model": one.model.record()}
        targets.append(
            Target(f"{one.name}: information lost more than with {ranked[0].name}", "nats", None,
                   more, error)
        )  # fmt: skip
    order = " < ".join(one.name for one in ranked)
    return targets, {"ranking": details, "order by information lost": order}


# ---------------------------------------------------------------- 2: W = E - TS


def closure(
    flow: FiberFlow, other: FiberFlow, case: Case, energy: Energy, quick: bool
) -> tuple[list[Target], dict[str, Any]]:
    """Return by how much E - TS is above W, and how W of two split-flows differ, kT."""
    frames, samples, steps = (2, 8, 4) if quick else (FRAMES, SAMPLES, 8)
    kt = float(thermal_energy(300.0))
    chosen = np.linspace(0, len(case.test) - 1, frames).astype(int)
    beads = BeadFrames(flow.fiber.beads_of(case.test[chosen]), flow.bead_topology)
    one, two = (
        cgml.decompose(f, beads, energy, samples, seed=SEED + k, solver=Solver(steps=steps))
        for k, f in enumerate((flow, other))
    )
    gaps = [d.gap / kt for d in (one, two)]
    apart = (one.mean_force_potential - two.mean_force_potential) / kt
    error = np.hypot(one.mean_force_potential_error, two.mean_force_potential_error) / kt
    # The split-flows share the beads, so that W itself is to agree, not only its differences.
    z = apart / np.maximum(error, 1e-12)
    details = {
        "W = E - TS": {
            "frames": frames, "samples": samples,
            "gap of the split-flow, kT": gaps[0].tolist(),
            "gap of the shorter training, kT": gaps[1].tolist(),
            "W of both, kT apart": apart.tolist(), "standard errors, kT": error.tolist(),
            "effective samples": one.effective.tolist(),
            "effective samples, shorter": two.effective.tolist(),
        }
    }  # fmt: skip
    targets = [
        Target("E - TS above W, least of all frames", "kT", 0.0, float(gaps[0].min()), None,
               False, SOURCE),
        Target("E - TS above W, mean", "kT", None, float(gaps[0].mean())),
        Target("E - TS above W, mean, shorter training", "kT", None, float(gaps[1].mean())),
        Target("W of two split-flows, rms apart", "kT", None,
               float(np.square(apart).mean() ** 0.5), float(np.square(error).mean() ** 0.5)),
        Target("W of two split-flows, rms z", "", None, float(np.square(z).mean() ** 0.5)),
        Target("effective share of samples on a fiber", "", None,
               float(one.effective.mean() / samples)),
    ]  # fmt: skip
    return targets, details


def force_field() -> Energy:
    """Return the potential that the frames were made with, kJ/mol."""
    from openmm import app

    pdb = app.PDBFile(str(DATA / "ala2" / "topology.pdb"))
    field = app.ForceField("amber99sb.xml", "amber99_obc.xml")
    system = field.createSystem(pdb.topology, constraints=None)
    return lambda positions: system_energies(system, positions)


def springs(case: Case) -> Energy:
    """Return springs for bonds and next neighbours, kJ/mol, as stiff as the frames' are."""
    known = np.asarray(case.train.positions, dtype=float)
    pairs = np.argwhere(bond_separations(known.shape[1], case.train.topology.bonds) <= 2)
    first, second = pairs[pairs[:, 0] < pairs[:, 1]].T
    lengths = np.linalg.norm(known[:, first] - known[:, second], axis=-1)
    mean, width = lengths.mean(0), lengths.std(0)
    kt = float(thermal_energy(300.0))

    def energy(positions: np.ndarray) -> np.ndarray:
        now = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
        return kt * (np.square((now - mean) / width) / 2).sum(1)

    return energy


# ---------------------------------------------------------------- 3: all the way back


def generator(flow: FiberFlow, energy: Energy) -> tuple[list[Target], dict[str, Any]]:
    """Return the effective samples and the mean energy of weighted backmapped structures."""
    case = alanine(weighted=True)
    with np.load(DATA / "ala2" / "wtmetad_unconstrained.npz") as stored:
        positions, weights = (stored[k][16000:].astype(float) for k in ("positions", "weights"))
    kt = float(thermal_energy(300.0))
    train, valid = (
        cgml.CGDataset(flow.fiber.beads_of(part.positions), flow.bead_topology, 300.0,
                       weights=part.weights)
        for part in (case.train, case.valid)
    )  # fmt: skip
    beads = cgml.FLOWS["coupling"](train, seed=SEED)
    cgml.fit_flow(beads, train, valid, epochs=20, seed=SEED, progress=False)
    drawn, logs = beads.sample(WEIGHED, seed=SEED)
    frames = BeadFrames(drawn.numpy().astype(float), flow.bead_topology)
    made = cgml.backmap(
        flow, frames, density="exact", solver=Solver(steps=8), seed=SEED, progress=False
    )
    u = energy(made.positions)
    weighed, report = cgml.atomistic_weights(made, u, -kt * logs.numpy(), 300.0)
    shares = np.exp(weighed - weighed.max())
    shares /= shares.sum()
    mean = float(shares @ u)
    error = float(np.square(shares * (u - mean)).sum() ** 0.5)
    true = energy(positions[::4])
    own = weights[::4] / weights[::4].sum()
    targets = [
        Target(f"effective samples of {WEIGHED} weighted structures", "", None, report.effective),
        Target("mean energy of weighted structures less the run's", "kJ/mol", None,
               mean - float(own @ true), error),
        Target("mean energy of structures without weights less the run's", "kJ/mol", None,
               float(u.mean() - own @ true)),
    ]  # fmt: skip
    return targets, {"weights": report.text()}


if __name__ == "__main__":
    main("mapping_entropy", __doc__, run)
