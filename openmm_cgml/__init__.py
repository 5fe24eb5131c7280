"""Machine-learned coarse-graining in OpenMM: from an all-atom trajectory to CG dynamics.

Names are imported on first use, so ``import openmm_cgml`` is light and takes no side in the
import order of torch and openmm.
"""

import importlib
from typing import Any

from .errors import BackendError, CGMLError, InputError, ModelFileError, UntrustedModelError
from .version import __version__

_EXPORTS = {
    "CGTopology": "topology",
    "read_topology": "topology",
    "read_trajectory": "trajectory",
    "MAPPINGS": "mapping",
    "FORCE_MAPS": "mapping",
    "selection_mapping": "mapping.custom",
    "table_mapping": "mapping.table",
    "slice_mapping": "mapping.core",
    "com_mapping": "mapping.core",
    "CGDataset": "dataset",
    "read_dataset": "dataset",
    "iterate_dataset": "dataset",
    "merge": "merging",
    "merge_files": "merging",
    "append": "merging",
    "DatasetCollection": "collection",
    "read_collection": "collection",
    "single_molecules": "molecules",
    "describe": "dataset_info",
    "bead_topology": "convert",
    "convert_files": "convert",
    "from_arrays": "convert",
    "to_npz": "convert",
    "map_trajectory": "mapped",
    "run_reference": "reference.run",
    "DatasetReporter": "reference.reporter",
    "PMFS": "pmf",
    "PMF": "pmf.core",
    "SumPMF": "pmf.core",
    "fit_prior": "pmf.prior",
    "fit_prior_table": "pmf.prior",
    "read_prior_table": "pmf.prior",
    "PriorTable": "pmf.prior",
    "Charges": "pmf.prior",
    "external": "pmf.external",
    "EnsemblePMF": "pmf.ensemble",
    "fit_ensemble": "ensemble",
    "force_uncertainty": "ensemble",
    "fit": "train",
    "ForceMatching": "losses",
    "Denoising": "losses",
    "Mixture": "losses",
    "CustomLoss": "losses",
    "RelativeEntropy": "relative_entropy",
    "plan": "training_plan",
    "FLOWS": "flow",
    "Flow": "flow.core",
    "FlowPMF": "flow_training",
    "Likelihood": "flow_training",
    "fit_flow": "flow_training",
    "save_flow": "flow_file",
    "load_flow": "flow_file",
    "FiberFlow": "flow.fiber",
    "split_flow": "flow.fiber",
    "load_split_flow": "flow_file",
    "distill": "distillation",
    "agreement": "distillation",
    "propose": "boltzmann",
    "fine_tune": "fine_tuning",
    "check_by_dynamics": "rescue",
    "anneal": "rescue",
    "combine": "rescue",
    "rank_pmfs": "ranking",
    "backmap": "backmapping",
    "write_backmapped": "backmapping",
    "mapping_entropy": "entropy",
    "data_entropy": "entropy",
    "fiber_average": "entropy",
    "decompose": "entropy",
    "compare_mappings": "entropy",
    "assess": "quality",
    "relax": "relaxation",
    "atomistic_weights": "atomistic",
    "save_model": "model_file",
    "load_model": "system",
    "prior_forces": "native_prior",
    "save_system": "system",
    "load_system": "system",
    "Langevin": "simulate",
    "Run": "run_file",
    "read_run": "run_file",
    "ReplicaExchange": "remd",
    "ladder": "remd",
    "compare": "analysis",
    "rmsd": "observables",
    "radius_of_gyration": "observables",
    "pair_distances": "observables",
    "contact_map": "observables",
    "NativeContacts": "observables",
    "free_energy_surface": "landscape",
    "principal_components": "landscape",
    "tica": "landscape",
    "time_series": "landscape",
    "draw_mapping": "map_picture",
    "diagnose": "doctor",
}

__all__ = [
    "FLOWS",
    "BackendError",
    "CGMLError",
    "Flow",
    "FlowPMF",
    "InputError",
    "Likelihood",
    "ModelFileError",
    "UntrustedModelError",
    "__version__",
    "agreement",
    "distill",
    "fit_flow",
    "load_flow",
    "save_flow",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
