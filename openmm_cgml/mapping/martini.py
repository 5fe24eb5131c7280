"""Martini-like beads of proteins and lipids; their table is data/mappings/martini.toml."""

from typing import Any

from ..errors import InputError
from .core import Mapping
from .residue import solvent_residues
from .table import table_mapping
from .table_file import packaged_table

# Amber's lipid force fields write a lipid as three residues: a head and two tails.
_AMBER_LIPID_PARTS = ("LAL", "PA", "MY", "OL", "ST", "AR", "DHA", "PC", "PE", "PS", "PGR", "PH-")


def martini(top: Any) -> Mapping:
    """Map amino acids, caps and phosphatidylcholine lipids to beads as in Martini 2.

    Each bead is the centre of mass of its heavy atoms and their hydrogens; each heavy atom is in
    one bead. Bead types say what is in a bead and are not Martini's interaction types. Water and
    monatomic ions are left out; `left_out` counts them.

    Args:
        top: mdtraj.Topology with bonds.

    Raises:
        InputError: if a residue is not in the table, or has other heavy atoms than there; if the
            system is only water and ions.

    Reference: Monticelli et al. 2008, doi:10.1021/ct700324x; de Jong et al. 2013,
        doi:10.1021/ct300646g; Wassenaar et al. 2015, doi:10.1021/acs.jctc.5b00209.
    """
    table = packaged_table("martini")
    if len(solvent_residues(top)) == top.n_residues:
        raise InputError(
            f"the system is only {', '.join(sorted({r.name for r in top.residues}))}, and a water "
            "bead of Martini stands for four molecules, which no fixed map can follow as they "
            "diffuse; choose residue_com or molecule_com: one bead a molecule"
        )
    split = [r for r in top.residues if r.name in _AMBER_LIPID_PARTS]
    if split:
        raise InputError(
            f"residue {split[0]} is a head or tail of a lipid in Amber's naming, of which mapping "
            "'martini' knows whole residues with CHARMM's names (DMPC, POPC, ...); convert the "
            "topology (as charmmlipid2amber does, backwards), or describe these residues in a "
            "table of your own"
        )
    return table_mapping(top, table)
