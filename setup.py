import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version():
    # Not imported: the package's dependencies are not there yet when this runs.
    source = (ROOT / "openmm_cgml" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE).group(1)


def native_arguments():
    """Arguments of setup() for a package with the compiled library of the native force in it.

    Without it the library is compiled on first use, which needs a C++ compiler on every machine.
    It fits only the torch and OpenMM that are installed here, so they must be importable:
    ``CGML_BUILD_NATIVE=1 pip install --no-build-isolation .``. Another torch or OpenMM ignores it.
    """
    from setuptools import Distribution
    from setuptools.command.build_py import build_py

    class BuildNative(build_py):
        def run(self):
            super().run()
            sys.path.insert(0, str(ROOT))
            from openmm_cgml.native import library

            library.ship(Path(self.build_lib) / "openmm_cgml" / "native")

    class WithLibrary(Distribution):
        def has_ext_modules(self):  # so that the wheel is named for this kind of machine
            return True

    return {"cmdclass": {"build_py": BuildNative}, "distclass": WithLibrary}


REQUIRES = [
    "numpy",
    "torch>=2.9",
    "openmm>=8.4",
    "openmmtorch",
    "mdtraj",
    "parmed",
    "scipy",
    "h5py",
    "lightning",
    "pymbar>=4",
    # Pareto-smoothed importance sampling, which ArviZ's new package has from Python 3.11 on.
    'arviz-stats>=0.8; python_version >= "3.11"',
    'arviz<1; python_version < "3.11"',
    "torchdiffeq",  # the solver of continuous flows
    "matplotlib",
    "rich",
    "typer",
    'tomli; python_version < "3.11"',  # the standard library has it from then on
    "setuptools",  # for torch's compiler; torch 2.9 requires it only from Python 3.12 on
]

# openmmtorch 1.5 pins nothing, but its binary fits only torch 2.9, and OpenMM below 8.6. Without
# one of the first two extras pip takes the newest of everything, where TorchForce fails.
# Its wheels for these Pythons were linked to CUDA 13's libnvrtc, which PyPI's torch 2.9 (CUDA 12)
# does not bring; it has to be loaded before openmm.
NVRTC_13 = (
    "nvidia-cuda-nvrtc==13.*; sys_platform == 'linux' and platform_machine == 'x86_64'"
    " and (python_version == '3.10' or python_version == '3.13')"
)
EXTRAS = {
    "torchforce": ["openmmtorch==1.5", "torch==2.9.*", "openmm>=8.4,<8.6", NVRTC_13],
    "cuda12": ["openmmtorch[cuda12]==1.5", "torch==2.9.*", "openmm[cuda12]>=8.4,<8.6", NVRTC_13],
    "external": ["torchmd-net"],  # of examples/external_network; external() itself needs none
    "analysis": ["deeptime"],  # of tica
    "docs": ["sphinx", "myst-parser", "furo", "latex2mathml"],
    "dev": [
        *("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"),
        *("physical_validation", "deeptime"),
        *("openmmml", "openmmtools"),  # tests with other programs
        *("py-rattler-build", "zstandard"),  # build conda-recipe/, look into the package
        *("sphinx", "myst-parser", "furo", "latex2mathml"),
        *("nbformat", "nbclient", "ipykernel"),  # run the notebooks
    ],
}

setup(
    name="openmm_cgml",
    version=read_version(),
    description="Machine-learned coarse-grained simulation in OpenMM",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The openmm_cgml developers",
    license="MIT",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Chemistry",
        "Topic :: Scientific/Engineering :: Physics",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["openmm_cgml", "openmm_cgml.*"]),
    package_data={
        "openmm_cgml": ["py.typed", "data/**/*", "native/**/*.cpp", "native/**/*.h"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["cgml = openmm_cgml.cli:main"],
        "openmmml.potentials": ["cgml = openmm_cgml.plugin:CGMLPotentialImplFactory"],
    },
    zip_safe=False,
    **(native_arguments() if os.environ.get("CGML_BUILD_NATIVE") == "1" else {}),
)
