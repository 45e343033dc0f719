# Example of a cluster's settings. Copy it, change it, and source it before training (never run it as it stands).
# The module names are placeholders: `module avail` shows yours.

# 1. Python and compiler of the site.
# module load python/3.11
# module load cuda/13

# 2a. MPI from the wheels (hpcnmt[mpich]): nothing to load; srun needs its PMI2 plugin.
export HPCNMT_SRUN_MPI=pmi2    # Open MPI: pmix
# 2b. Or the site's MPICH-compatible MPI (MPICH ABI: Cray, Intel, MVAPICH), whose library mpi4py then loads:
# module load cray-mpich-abi
# export HPCNMT_SRUN_MPI=pmi2

# 3. One compute thread a rank unless the job gives each rank more cores.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# 4. MPICH over TCP between hosts (no InfiniBand): take libfabric's tcp provider.
#    With 8 VCIs a push of the asynchronous engine does not wait for the transfers beside it (docs/engine.md).
# export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp MPIR_CVAR_CH4_NUM_VCIS=8

# 5. Check first:  srun -K -n 3 --mpi=$HPCNMT_SRUN_MPI hpcnmt doctor
