"""The trainers on a machine that has torch, torchvision, NumPy and scikit-learn, and nothing of the service."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

ABSENT = ("ray mlflow fastapi pydantic sqlalchemy optuna typer rich httpx plotly matplotlib pandas pyarrow yaml psutil "
          "alembic service search_spaces").split()
sys.modules.update(dict.fromkeys(ABSENT))  # importing one of these raises ModuleNotFoundError
from trainers.__main__ import main

for arguments in (
    ["dataset=digits", "model=small_cnn", "sampling=gradient_norm", "epochs=1", "--json", "--threads", "1"],
    ["dataset=ridge", "model=linear", "sampling=lipschitz", "epochs=1", "--json", "--threads", "1"],
):
    assert main(arguments) == 0
assert "torchvision" not in sys.modules, "it takes a second to import, and only its own models and datasets need it"
from trainers import vision

assert vision.models is not None
"""


def test_the_trainers_need_only_torch_torchvision_numpy_and_scikit_learn_and_a_digits_run_no_torchvision() -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count('"epoch": 1') == 2
