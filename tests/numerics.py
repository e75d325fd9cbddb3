"""The environment that bitwise equality needs: conftest.py sets it before anything imports torch."""

NUMERICS_ENV = {"MKL_CBWR": "AUTO,STRICT", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
