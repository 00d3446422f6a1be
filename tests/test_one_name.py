"""What is imported has one name, `carousel.*`, whichever way a command is started."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "training", "export", "service", "benchmarks")

NAMES = """
import importlib.util, json, os, runpy, sys
module = sys.argv[1]
sys.argv = [module, "--help"]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
sys.modules.pop("__mp_main__", None)  # multiprocessing's second name for the main module itself
files = [os.path.realpath(each.__file__) for each in list(sys.modules.values()) if getattr(each, "__file__", None)]
spec = importlib.util.find_spec(module)
main = importlib.util.find_spec(module + ".__main__") if spec.submodule_search_locations else spec
print("\\n" + json.dumps([*files, os.path.realpath(main.origin)]))
"""


@pytest.mark.parametrize(
    "module",
    [
        "carousel",
        "service",
        "training",
        "training.evaluate",
        "export",
        "export.features",
        "benchmarks",
        "benchmarks.naive",
    ],
)
def test_no_file_is_loaded_under_two_names(module):
    done = subprocess.run([sys.executable, "-c", NAMES, module], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = [file for file in json.loads(done.stdout.splitlines()[-1]) if Path(file).is_relative_to(ROOT)]
    ours = [file for file in ours if ".venv" not in Path(file).parts]
    assert len(ours) > 1
    assert sorted(ours) == sorted(set(ours))


def test_nobody_imports_a_room_by_a_bare_name():
    bare = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(ROOMS)})\b", re.MULTILINE)
    files = [path for room in (*ROOMS, "carousel", "tests") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 400
    assert [path for path in files if bare.search(path.read_text(encoding="utf-8"))] == []


def test_rooms_are_found_beside_the_package():
    assert {path.name: path.resolve() for path in (ROOT / "carousel").iterdir() if path.is_symlink()} == {
        room: ROOT / room for room in ROOMS
    }
