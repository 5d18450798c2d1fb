"""Has software stand in for hardware that is not there, in every Python process with this folder on its path.

    PYTHONPATH=tools/stand_ins TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 python rollout.py
    PYTHONPATH=tools/stand_ins TRACEKIT_WIDE_PRODUCTS=1 python rollout.py

Python imports a module of this name when it starts, in each of an engine's processes; an environment variable each
selects what is patched, and without one nothing is. See `triton_interpreter` and `wide_products`.
"""

import os

import triton_interpreter
import wide_products

if os.environ.get("TRITON_INTERPRET") == "1":
    triton_interpreter.install()
if os.environ.get("TRACEKIT_WIDE_PRODUCTS") == "1":
    wide_products.install()
