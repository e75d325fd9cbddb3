"""The environment that bitwise equality needs: conftest.py sets it before anything imports torch or NumPy."""

# None: not set.
NUMERICS_ENV: dict[str, str | None] = {
    "MKL_CBWR": "AUTO,STRICT",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": None,
    "OPENBLAS_L2_SIZE": None,
    "OPENBLAS_BLOCK_FACTOR": None,
}
