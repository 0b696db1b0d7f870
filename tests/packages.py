"""Builds the source archive and the wheel, and tries the wheel where nothing else is: make wheel.

The wheel is installed with its dependencies alone into an environment of its own and used from
another folder, as by a user who has no clone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

USE = """
import importlib.util, sys
import fnn, jax, jax.numpy as jnp

assert "site-packages" in fnn.__file__, fnn.__file__
for name in ("experiments", "tests"):
    assert importlib.util.find_spec(name) is None, f"{name} is importable"
for extra in ("matplotlib", "optax", "rich", "tyro", "orbax", "sklearn", "mpmath"):
    assert importlib.util.find_spec(extra) is None, f"{extra} came along"

fnn.conv(4, 3)
net = fnn.serial(hidden=fnn.linear(4), act=fnn.relu(), out=fnn.linear(2))
x = jnp.ones((3, 5))
params = net.init(jax.random.key(0), x)
board = fnn.whiteboard.trace(net, params, x, jnp.array([0, 1, 1]), fnn.softmax_cross_entropy())
page = board.html()
assert "<svg" in page and "<script" in page and "<style" in page
assert fnn.check.block(fnn.tanh(), x).ok
print("fnn", fnn.__version__, "works from its wheel with jax", jax.__version__)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    return subprocess.run(command, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE).stdout


def check_names(wheel: Path, source: Path) -> None:
    """The wheel holds fnn alone, whole; the source archive what git has, but for git's own file."""
    tracked = set(run("git", "ls-files").splitlines()) - {".gitignore"}
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {name for name in tracked if name.startswith("fnn/")}, ours ^ tracked
    assert {"fnn/py.typed", "fnn/whiteboard/page.js", "fnn/whiteboard/page.css"} <= ours
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked <= held, f"the source archive lacks {sorted(tracked - held)}"


def main() -> None:
    for old in DIST.glob("fnn-*"):
        old.unlink()
    # The wheel is built from the source archive, so that is enough to build from.
    uv = shutil.which("uv")
    build = ("build", "--outdir", DIST, *(("--installer", "uv") if uv else ()))
    run(sys.executable, "-m", *build)
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    check_names(wheel, source)
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder)
        venv.create(elsewhere / "venv", with_pip=not uv)
        python = elsewhere / "venv/bin/python"
        pip = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
        run(*pip, "--quiet", "-c", ROOT / "constraints.txt", wheel)
        print(run(python, "-c", USE, cwd=elsewhere), end="")
    print(f"built {wheel.relative_to(ROOT)} and {source.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
